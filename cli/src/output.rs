//! What goes to standard output: each answer is a value, shown to people as text or to programs as JSON.

use std::io::{self, BufRead as _, ErrorKind, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::style::Style;

/// How to show answers.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// As JSON.
    pub json: bool,
    /// Text in colour.
    pub style: Style,
}

impl Output {
    /// Shows a value.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        print(&self.text_of(value, text)?)
    }

    /// Shows a value that is nowhere else: a reader that has gone is an error.
    pub fn hand_over<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        write(&self.text_of(value, text)?)
    }

    fn text_of<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<String> {
        Ok(if self.json { format!("{}\n", serde_json::to_string_pretty(value)?) } else { text(value) })
    }
}

/// Whether somebody is there to be asked.
pub fn can_ask(output: Output) -> bool {
    !output.json && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Whether the answer to a question is yes.
pub fn agrees() -> io::Result<bool> {
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Prints text. A reader that has seen enough is no error.
pub fn print(text: &str) -> io::Result<()> {
    match write(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
