//! Colour, where it is wanted.

use anstyle::AnsiColor;
use nemos_model::health::Health;
use nemos_model::stack::LayerState;

/// Whether and how to colour.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// With or without colour.
    pub const fn new(colour: bool) -> Self {
        Style { colour }
    }

    /// A layer's state, as text in its colour.
    pub fn state(self, state: LayerState, text: &str) -> String {
        self.paint(
            text,
            match state {
                LayerState::Ok => AnsiColor::Green,
                LayerState::Warning => AnsiColor::Yellow,
                LayerState::Failed => AnsiColor::Red,
            },
        )
    }

    /// A health, as text in its colour.
    pub fn health(self, health: Health, text: &str) -> String {
        self.paint(
            text,
            match health {
                Health::Ok => AnsiColor::Green,
                Health::Warning => AnsiColor::Yellow,
                Health::Critical => AnsiColor::Red,
            },
        )
    }

    fn paint(self, text: &str, colour: AnsiColor) -> String {
        if self.colour {
            let style = colour.on_default().bold();
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}
