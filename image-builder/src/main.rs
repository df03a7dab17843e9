//! Builds the nemos reference disk image, looks into it, checks it, and runs it in QEMU.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nemos_image::build::{BootstrapArgs, BuildArgs, BuildError, PackageArgs, bootstrap, build, build_package};
use nemos_image::inspect::{InspectArgs, inspect};
use nemos_image::keys::{KeysArgs, generate};
use nemos_image::recipe::RecipeError;
use nemos_image::run::{RunArgs, run};
use nemos_image::verify::{VerifyArgs, verify};

/// Builds the nemos reference disk image, looks into it, checks it, and runs it in QEMU
#[derive(Debug, Parser)]
#[command(name = "nemos-image", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
    Bootstrap(BootstrapArgs),
    Package(PackageArgs),
    Keys(KeysArgs),
    Run(RunArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
}

/// A command line that asks for what there is not.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nemos-image: {error}");
            let unknown_profile =
                matches!(error.downcast_ref(), Some(BuildError::Recipe(RecipeError::UnknownProfile { .. })));
            if unknown_profile { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Build(args) => build(&args).map(|_| ExitCode::SUCCESS).map_err(Into::into),
        Command::Bootstrap(args) => bootstrap(&args).map(|_| ExitCode::SUCCESS).map_err(Into::into),
        Command::Package(args) => build_package(&args).map(|_| ExitCode::SUCCESS).map_err(Into::into),
        Command::Keys(args) => {
            let folder = generate(&args)?;
            eprintln!("{}: keys for development only; see its README", folder.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => Ok(run(args)?),
        Command::Inspect(args) => {
            // A reader that has seen enough is no failure.
            let _ = io::stdout().write_all(inspect(&args)?.as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify(args) => {
            let sound = verify(&args, |line| drop(writeln!(io::stdout(), "{line}")))?;
            Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
