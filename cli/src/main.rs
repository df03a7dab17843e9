//! The command line of nemos.

#![forbid(unsafe_code)]

use std::alloc::System;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nemos_api::CallError;
use thiserror::Error;
use zbus::Connection;
use zeroizing_alloc::ZeroAlloc;

use crate::arguments::{Arguments, Command, Overlay, OverlayCommand, Reset, ResetCommand, When};
use crate::manifest::ManifestError;
use crate::output::Output;
use crate::style::Style;

mod archive;
mod arguments;
mod certificate;
mod configuration;
mod content;
mod health;
mod integrity;
mod job;
mod key_file;
mod keys;
mod manifest;
mod metrics;
mod output;
mod overlay;
mod reset;
mod status;
mod style;
mod table;
mod text;
mod usage;

/// Secrets pass through the memory of libraries as well, which do not wipe it.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

/// Why a command came to nothing.
#[derive(Debug, Error)]
enum Failure {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("a reset erases data, and there is no terminal to ask on; say --yes, or --dry-run to see what would go")]
    NobodyToAsk,
    #[error(
        "what is taken back is gone, and there is no terminal to ask on; say --yes, or --dry-run to see what would go"
    )]
    NobodyToAskForChanges,
    #[error("cannot read {}: {source}", path.display())]
    Content { path: PathBuf, source: std::io::Error },
    #[error("{0} is as the image has it")]
    Unchanged(String),
    #[error("nothing was changed")]
    Declined,
    #[error("{0}")]
    Usage(String),
    #[error(
        "no recovery key was sealed for a fleet: the image names no recipients, the device has no TPM or has lost its memory, or another key took its place"
    )]
    NotSealed,
    #[error("whether the next boot opens the overlay is not known: {0}")]
    NotForeseen(CallError),
    #[error(
        "nemosd did not bring it to its end, so the new key opens nothing; `journalctl --unit nemosd` says why, then try again"
    )]
    NotKept,
    #[error("whether that key counts is not known ({0}): `nemosctl keys` shows its slot if it does")]
    MayBeKept(Box<Failure>),
    #[error("the new recovery key cannot be shown ({0}), and is taken back")]
    NotShown(std::io::Error),
    #[error(
        "the new recovery key cannot be shown ({0}), and nobody has it; `nemosctl keys` shows its slot, `nemosctl keys remove` destroys it"
    )]
    NotShownAndThere(std::io::Error),
    #[error("{0}")]
    Certificate(#[from] certificate::Failure),
    #[error(transparent)]
    Archive(#[from] archive::Failure),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Call(CallError::Refused(_))
            | Failure::Declined
            | Failure::NotSealed
            | Failure::NotKept
            | Failure::MayBeKept(_)
            | Failure::NotShown(_)
            | Failure::NotShownAndThere(_)
            | Failure::Unchanged(_)
            | Failure::Content { .. }
            | Failure::Archive(_)
            | Failure::Output(_) => 1,
            Failure::Certificate(failure) => failure.exit_code(),
            Failure::NobodyToAsk | Failure::NobodyToAskForChanges | Failure::Usage(_) | Failure::Manifest(_) => 2,
            Failure::Call(CallError::Unreachable(_)) | Failure::NotForeseen(_) => 3,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Failure::Call(CallError::Unreachable(_)) | Failure::NotForeseen(CallError::Unreachable(_)) => {
                Some("see `systemctl status nemosd` and `journalctl -u nemosd`")
            }
            _ => None,
        }
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Failure::Call(error.into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let style = Style::new(match arguments.color {
        When::Always => true,
        When::Never => false,
        When::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
    });
    let output = Output { json: arguments.json, style };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(arguments.command, output)));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("nemosctl: {failure}");
            if let Some(hint) = failure.hint() {
                eprintln!("{hint}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(command: Command, output: Output) -> Result<u8, Failure> {
    match command {
        Command::Health => health::run(connect().await, output).await,
        Command::Metrics(arguments) => metrics::run(connect().await, arguments).await,
        Command::Status(arguments) => match arguments.against_manifest {
            Some(file) => manifest::run(&file, output),
            None => status::run(&connect().await?, output).await,
        },
        Command::Reset(Reset { command: Some(ResetCommand::Certificate(command)), .. }) => {
            certificate::run(command, output).await
        }
        Command::Reset(arguments) => {
            reset::check(&arguments, output)?;
            reset::run(&connect().await?, arguments, output).await
        }
        Command::Integrity(arguments) => integrity::run(&connect().await?, arguments, output).await,
        Command::Overlay(Overlay { command: Some(OverlayCommand::Sign { file, key }) }) => {
            archive::sign(&file, &key, output)
        }
        Command::Overlay(arguments) => {
            overlay::check(&arguments, output)?;
            overlay::run(&connect().await?, arguments, output).await
        }
        Command::Keys(arguments) => keys::run(&connect().await?, arguments, output).await,
        Command::Job(command) => job::run(&connect().await?, command, output).await,
    }
}

async fn connect() -> Result<Connection, CallError> {
    Ok(Connection::system().await?)
}
