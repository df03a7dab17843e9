//! Sends the events of `tracing` to the journal, each of their fields as a field of its own.
//!
//! The bridge from `tracing` to `log` would flatten the fields into the message, where no program can select by them.

use std::fmt::{Debug, Write};
use std::io;

use log::{Level as LogLevel, Record};
use systemd_journal_logger::JournalLog;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// See the module.
pub struct JournalLayer(JournalLog);

impl JournalLayer {
    /// A layer for the system's journal; fails where there is none.
    pub fn new() -> io::Result<Self> {
        JournalLog::new().map(JournalLayer)
    }
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        // There is nobody to tell that the journal does not listen.
        let _ = self.0.journal_send(
            &Record::builder()
                .level(level(*metadata.level()))
                .target(metadata.target())
                .module_path(metadata.module_path())
                .file(metadata.file())
                .line(metadata.line())
                .key_values(&fields.others.as_slice())
                .args(format_args!("{}", fields.message))
                .build(),
        );
    }
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

/// The fields of an event; the journal writes their names in capitals.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.push((field.name(), format!("{value:?}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    type Seen = Arc<Mutex<Vec<(String, Vec<(&'static str, String)>)>>>;

    struct Collect(Seen);

    impl<S: Subscriber> Layer<S> for Collect {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            self.0.lock().unwrap().push((fields.message, fields.others));
        }
    }

    #[test]
    fn a_field_stays_out_of_the_message_and_keeps_its_plain_text() {
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(Collect(Arc::clone(&seen)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(message_id = "d0c2", nemos_job = %"a\"b", uid = 7_u32, "job {} taken", 1);
        });
        let others = vec![("message_id", "d0c2".into()), ("nemos_job", "a\"b".into()), ("uid", "7".into())];
        assert_eq!(*seen.lock().unwrap(), [("job 1 taken".to_owned(), others)]);
    }
}
