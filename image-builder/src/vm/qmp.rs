//! QEMU's machine protocol: a line of JSON a message.

use serde_json::{Value, json};

/// What QEMU says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// It is there.
    Greeting,
    /// A command was carried out, or refused for a reason.
    Reply(Result<(), String>),
    /// The machine begins anew.
    Reset,
    /// The machine is off, for this reason.
    Shutdown(String),
    /// A migration (which here goes to or comes from a file) is in this state.
    Migration(String),
    /// Something that nobody here waits for.
    Other,
}

/// The line that asks for a command.
pub(super) fn command(name: &str, arguments: &Value) -> String {
    format!("{}\n", json!({ "execute": name, "arguments": arguments }))
}

impl Message {
    /// Reads a line.
    pub(super) fn parse(line: &str) -> Self {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return Message::Other };
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        if message.get("QMP").is_some() {
            return Message::Greeting;
        }
        if message.get("return").is_some() {
            return Message::Reply(Ok(()));
        }
        if message.get("error").is_some() {
            return Message::Reply(Err(text("/error/desc")));
        }
        match text("/event").as_str() {
            "RESET" => Message::Reset,
            "SHUTDOWN" => Message::Shutdown(text("/data/reason")),
            "MIGRATION" => Message::Migration(text("/data/status")),
            _ => Message::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_qemu_are_understood() {
        for (line, message) in [
            (r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, Message::Greeting),
            (r#"{"return": {}}"#, Message::Reply(Ok(()))),
            (r#"{"error": {"class": "GenericError", "desc": "no"}}"#, Message::Reply(Err("no".into()))),
            (
                r#"{"timestamp": {}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#,
                Message::Reset,
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                Message::Shutdown("guest-shutdown".into()),
            ),
            (r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#, Message::Migration("completed".into())),
            (r#"{"event": "RTC_CHANGE", "data": {"offset": 0}}"#, Message::Other),
            ("not json", Message::Other),
        ] {
            assert_eq!(Message::parse(line), message, "{line}");
        }
    }
}
