//! `nemosctl keys`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl keys                                  the key slots that are in use, and what opens each
  nemosctl keys enroll recovery-key              a key to write down, shown once
  nemosctl keys enroll recovery-key --recipient age1... > escrow.age
                                                 one that only the fleet can read (age --decrypt)
  nemosctl keys recovery show > escrow.age       the one that the image's policy had sealed; once it is kept:
  nemosctl keys recovery acknowledge escrow.age
  nemosctl keys enroll tpm2                      the boot needs nobody as long as Secure Boot stays as it is
  nemosctl keys enroll key-file --device LABEL=KEYS --path /nemos.key
                                                 a new key in that file, on a USB stick that is mounted now and is
                                                 plugged in at boot
  nemosctl keys rotate key-file                  the next one, in a file beside it
  nemosctl keys enroll pkcs11 --token-uri 'pkcs11:token=device;object=disk' --pin-file pin
                                                 kept by a security key, a smart card or OP-TEE, which has an RSA key and its
                                                 certificate
  nemosctl keys enroll passphrase                asks for it, twice
  nemosctl keys rotate passphrase --secret-file new --unlock-file old
                                                 the old one goes once a boot did not need it
  nemosctl keys remove 0                         as of the demo key, when there is another
  nemosctl keys forecast                         will the next boot open the overlay by itself?

Exit status: 0 done; 1 refused; 2 wrong usage; 3 nemosd cannot be reached.
`forecast` exits with 0 if the next boot needs nobody, 1 if somebody has to type something, 2 if nothing known opens it, 3 if
that is not known.")]
pub struct Keys {
    #[command(subcommand)]
    pub command: Option<KeysCommand>,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// List the key slots that are in use
    List,
    /// Add a key; it is there once it was seen to open the overlay's volume
    Enroll(NewKey),
    /// Recovery keys, by the name of what they are for
    #[command(subcommand)]
    Recovery(Recovery),
    /// Add a key in place of the one of its provider, which goes once a boot did not need it
    Rotate(NewKey),
    /// Destroy the key in a slot; the last one that is known to open the volume stays
    Remove {
        /// Its number
        slot: u32,
        /// Do not ask, even if somebody has to be at the console of the next boot
        #[arg(long)]
        yes: bool,
    },
    /// Say whether the next boot opens the overlay by itself, by which key, and why not by the others
    Forecast,
}

#[derive(Debug, Subcommand)]
pub enum Recovery {
    /// Have the device make one: `keys enroll recovery-key`
    Create {
        /// Encrypt it for this age key (age1...), so that nobody else ever sees it; may be given more than once
        #[arg(long, value_name = "KEY")]
        recipient: Vec<String>,
        /// In place of the one that there is: `keys rotate recovery-key`
        #[arg(long)]
        rotate: bool,
        /// A key that opens the volume now; not needed as long as another does that needs nobody
        #[arg(long, value_name = "FILE")]
        unlock_file: Option<PathBuf>,
    },
    /// Print the one that was made for the fleet, which only its recipients can read: `age --decrypt` opens it
    Show,
    /// Say that the fleet keeps the one that was made for it; one that it takes the place of, and that was used, then goes
    Acknowledge {
        /// What `show` printed, as it is kept; `-` is standard input
        file: PathBuf,
    },
}

#[derive(Debug, Default, clap::Args)]
pub struct NewKey {
    /// What it is: `tpm2`, which the device's TPM keeps, `pkcs11`, which another token keeps, `key-file`, on another device,
    /// `recovery-key`, which the device makes, or `passphrase`
    #[arg(value_parser = ["tpm2", "pkcs11", "key-file", "recovery-key", "passphrase"])]
    pub provider: String,
    /// Take the passphrase, or what a key file has already, from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// The device with the key file, as udev knows it: PARTUUID=..., UUID=... or LABEL=..., with ext4 or vfat on it
    #[arg(long, value_name = "DEVICE", requires = "path")]
    pub device: Option<String>,
    /// The key file, from the root of its device
    #[arg(long, value_name = "FILE", requires = "device")]
    pub path: Option<String>,
    /// The PKCS#11 token and the key on it, as `p11tool --list-tokens` and `--list-all` name them, without a PIN
    #[arg(long, value_name = "URI")]
    pub token_uri: Option<String>,
    /// Take the PIN of the token from this file; `-` is standard input. A token that has none needs none
    #[arg(long, value_name = "FILE")]
    pub pin_file: Option<PathBuf>,
    /// A key that opens the volume now; not needed as long as another does that needs nobody
    #[arg(long, value_name = "FILE")]
    pub unlock_file: Option<PathBuf>,
    /// Encrypt a recovery key for this age key (age1...), so that nobody else ever sees it; may be given more than once
    #[arg(long, value_name = "KEY")]
    pub recipient: Vec<String>,
}
