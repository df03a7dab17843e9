//! What an image is built for, and all that follows from it.

use std::fmt;

use clap::ValueEnum;
use object::pe::{self, Machine};
use serde::{Deserialize, Serialize};

/// Processors that images are built for, as Debian names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit PCs.
    #[default]
    Amd64,
    /// 64-bit ARM, little-endian.
    Arm64,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 2] = [Architecture::Amd64, Architecture::Arm64];

    /// The one that this program itself was compiled for, if it is one of these.
    pub fn of_host() -> Option<Self> {
        Architecture::ALL.into_iter().find(|known| known.rust_target().starts_with(std::env::consts::ARCH))
    }

    /// As Debian and OCI name it.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// What an image of this recipe is called. The one of most devices needs no second word.
    pub fn image_name(self, recipe: &str) -> String {
        match self {
            Architecture::Amd64 => recipe.to_owned(),
            Architecture::Arm64 => format!("{recipe}-{self}"),
        }
    }

    /// Where firmware looks on a disk that it was told nothing about: UEFI 2.10, 3.5.1.1.
    pub const fn removable_path(self) -> &'static str {
        match self {
            Architecture::Amd64 => "EFI/BOOT/BOOTX64.EFI",
            Architecture::Arm64 => "EFI/BOOT/BOOTAA64.EFI",
        }
    }

    /// systemd's EFI stub.
    pub const fn stub(self) -> &'static str {
        match self {
            Architecture::Amd64 => "linuxx64.efi.stub",
            Architecture::Arm64 => "linuxaa64.efi.stub",
        }
    }

    /// The machine of its EFI programs, in their header.
    pub const fn pe_machine(self) -> Machine {
        match self {
            Architecture::Amd64 => pe::IMAGE_FILE_MACHINE_AMD64,
            Architecture::Arm64 => pe::IMAGE_FILE_MACHINE_ARM64,
        }
    }

    /// The folder of its libraries, and what begins the names of its compilers.
    pub const fn multiarch(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-linux-gnu",
            Architecture::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// The folders of `/usr` that the root has links to.
    pub const fn merged_folders(self) -> &'static str {
        match self {
            Architecture::Amd64 => "bin sbin lib lib64",
            Architecture::Arm64 => "bin sbin lib",
        }
    }

    /// As rustc names it.
    pub const fn rust_target(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-unknown-linux-gnu",
            Architecture::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_called_the_same_in_a_recipe_and_on_a_command_line() {
        for known in Architecture::ALL {
            let name = serde_json::to_value(known).expect("a name");
            assert_eq!(name, known.name());
            assert_eq!(Architecture::from_str(known.name(), false), Ok(known));
        }
    }

    #[test]
    fn an_image_for_another_architecture_has_another_name() {
        assert_eq!(Architecture::default().image_name("default"), "default");
        assert_eq!(Architecture::Arm64.image_name("default"), "default-arm64");
    }
}
