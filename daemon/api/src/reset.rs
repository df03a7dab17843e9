//! Back to the image as it was shipped.

use nemos_model::Timestamp;
use nemos_model::reset::keep::{BadKeep, Kept};
use nemos_model::reset::plan::Erased;
use nemos_model::reset::{Plan, Scope, Step, Wish};
use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type, proxy};

use crate::certificate::KeyRecord;
use crate::job::JobRecord;
use crate::options::{Dictionary, Options};
use crate::{CallError, Error};

/// The Reset interface.
#[proxy(
    interface = "org.nemos.Device1.Reset",
    default_service = "org.nemos.Device1",
    default_path = "/org/nemos/Device1"
)]
pub trait Reset {
    /// What a reset would do: the plan's name, and the plan.
    #[zbus(allow_interactive_auth)]
    fn plan(&self, options: PlanOptions) -> Result<(String, PlanRecord), CallError>;

    /// Asks for a reset; gives back its job.
    #[zbus(allow_interactive_auth)]
    fn request(&self, scope: &str, options: RequestOptions) -> Result<OwnedObjectPath, CallError>;

    /// A certificate of the reset that the job of this name was. There are no options yet.
    #[zbus(allow_interactive_auth)]
    fn certificate(&self, job: &str, options: Dictionary) -> Result<String, CallError>;

    /// The key that certificates are verified with: PEM, and what is known of it. There are no options yet.
    fn certificate_key(&self, options: Dictionary) -> Result<(String, KeyRecord), CallError>;

    /// The reset that has not ended, or `/`.
    #[zbus(property)]
    fn pending(&self) -> Result<OwnedObjectPath, CallError>;

    /// Resets that have ended, oldest first; keys as the properties of a job.
    #[zbus(property)]
    fn history(&self) -> Result<Vec<JobRecord>, CallError>;
}

/// Options of `Plan`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct PlanOptions {
    /// Scope of the reset; `factory` if not given.
    pub scope: Option<String>,
    /// Paths to keep.
    pub keep: Option<Vec<String>>,
    /// Keep sets of the image, by name.
    pub keep_sets: Option<Vec<String>>,
    /// Keep everything on the overlay's volume: a new volume key for the same contents.
    pub keep_all: Option<bool>,
}

impl PlanOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read = PlanOptions {
            scope: options.take("scope")?,
            keep: options.take("keep")?,
            keep_sets: options.take("keep-sets")?,
            keep_all: options.take("keep-all")?,
        };
        options.finish().map(|()| read)
    }

    /// What is wished.
    pub fn wish(&self) -> Result<Wish, Error> {
        let scope = self.scope.as_deref().map_or(Ok(Scope::Factory), str::parse)?;
        let wish = wish(scope, self.keep.as_deref(), self.keep_sets.as_deref())?;
        Ok(Wish { everything: self.keep_all.unwrap_or_default(), ..wish })
    }
}

/// Options of `Request`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct RequestOptions {
    /// Idempotency key: asking again with it gives back the same job.
    pub key: Option<String>,
    /// A label for the caller's own records.
    pub label: Option<String>,
    /// Paths to keep.
    pub keep: Option<Vec<String>>,
    /// Keep sets of the image, by name.
    pub keep_sets: Option<Vec<String>>,
    /// Keep everything on the overlay's volume: a new volume key for the same contents.
    pub keep_all: Option<bool>,
    /// Not to begin before this, in seconds since the epoch.
    pub not_before: Option<u64>,
    /// Reboot as soon as the job is due.
    pub reboot: Option<bool>,
    /// Name of the plan that was shown; refused if it would be another now.
    pub plan: Option<String>,
}

impl RequestOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read = RequestOptions {
            key: options.take("key")?,
            label: options.take("label")?,
            keep: options.take("keep")?,
            keep_sets: options.take("keep-sets")?,
            keep_all: options.take("keep-all")?,
            not_before: options.take("not-before")?,
            reboot: options.take("reboot")?,
            plan: options.take("plan")?,
        };
        options.finish().map(|()| read)
    }

    /// The earliest time, if one was given.
    pub fn not_before(&self) -> Option<Timestamp> {
        self.not_before.map(Timestamp)
    }

    /// What is wished.
    pub fn wish(&self, scope: Scope) -> Result<Wish, Error> {
        let wish = wish(scope, self.keep.as_deref(), self.keep_sets.as_deref())?;
        Ok(Wish { everything: self.keep_all.unwrap_or_default(), ..wish })
    }
}

fn wish(scope: Scope, keep: Option<&[String]>, sets: Option<&[String]>) -> Result<Wish, Error> {
    let keep = keep.unwrap_or_default().iter().map(|path| path.parse()).collect::<Result<_, BadKeep>>()?;
    let sets = sets.unwrap_or_default().iter().map(|name| name.parse()).collect::<Result<_, BadKeep>>()?;
    Ok(Wish { keep, sets, ..Wish::all(scope) })
}

/// A [`Plan`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct PlanRecord {
    /// `overlay` or `factory`.
    pub scope: String,
    /// What goes.
    pub erased: Vec<ErasedEntry>,
    /// Labels of the partitions that stay as they are.
    pub untouched: Vec<String>,
    /// What is kept of that which goes.
    pub keep: Vec<KeptEntry>,
    /// Bytes in use on the overlay's volume, if all of them are kept.
    pub keep_all: Option<u64>,
    /// Label of the partition that what is kept waits on; not there if nothing is kept, as the next two.
    pub waits_on: Option<String>,
    /// Bytes that it needs there.
    pub room_needed: Option<u64>,
    /// Bytes that there are.
    pub room_available: Option<u64>,
    /// What the device makes anew of its own: `machine-id`, `SSH host keys`.
    pub regenerated: Vec<String>,
    /// What is done, step by step.
    pub steps: Vec<String>,
    /// How long it takes; not there if this device never did any of it.
    pub seconds: Option<u64>,
}

/// A path that is kept.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct KeptEntry {
    /// The path.
    pub path: String,
    /// Files, folders and links at and below it.
    pub entries: u64,
    /// Bytes of their contents.
    pub bytes: u64,
}

/// A partition whose contents go.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ErasedEntry {
    /// Its label.
    pub partition: String,
    /// `key-destroyed`, `key-replaced` or `formatted`.
    pub how: String,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Bytes in use.
    pub used: Option<u64>,
}

impl From<&Plan> for PlanRecord {
    fn from(plan: &Plan) -> Self {
        PlanRecord {
            scope: plan.scope.to_string(),
            erased: plan.erased.iter().map(ErasedEntry::from).collect(),
            untouched: plan.untouched.iter().map(|partition| partition.label().to_owned()).collect(),
            keep: plan.keep.iter().map(KeptEntry::from).collect(),
            keep_all: plan.everything.map(|everything| everything.bytes),
            waits_on: plan.room.map(|(on, _)| on.label().to_owned()),
            room_needed: plan.room.map(|(_, room)| room.needed),
            room_available: plan.room.map(|(_, room)| room.available),
            regenerated: plan.regenerated().into_iter().map(str::to_owned).collect(),
            steps: plan.steps().iter().map(Step::to_string).collect(),
            seconds: plan.seconds,
        }
    }
}

impl From<&Kept> for KeptEntry {
    fn from(kept: &Kept) -> Self {
        KeptEntry { path: kept.path.to_string(), entries: kept.usage.entries, bytes: kept.usage.bytes }
    }
}

impl From<&Erased> for ErasedEntry {
    fn from(erased: &Erased) -> Self {
        ErasedEntry {
            partition: erased.partition.label().to_owned(),
            how: erased.how.name().to_owned(),
            size: erased.size,
            used: erased.used,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;
    use zbus::wire::{LE, serialized::Context, to_bytes};
    use zbus::{OwnedVariant, Variant};

    fn sent(options: &RequestOptions) -> Dictionary {
        to_bytes(Context::new(LE, 0), options).unwrap().deserialize().unwrap().0
    }

    fn value<'a>(value: impl Into<Variant<'a>>) -> OwnedVariant {
        value.into().try_to_owned().unwrap()
    }

    proptest! {
        #[test]
        fn options_arrive_as_they_were_sent(
            key: Option<String>, label: Option<String>, not_before: Option<u64>, reboot: Option<bool>, keep: Option<Vec<String>>,
            keep_all: Option<bool>,
        ) {
            // D-Bus strings have no NUL in them.
            let clean = |text: Option<String>| text.map(|text| text.replace('\0', ""));
            let keep = keep.map(|paths| paths.into_iter().filter_map(|path| clean(Some(path))).collect());
            let (key, label) = (clean(key), clean(label));
            let options = RequestOptions { key, label, keep, keep_all, not_before, reboot, ..RequestOptions::default() };
            prop_assert_eq!(RequestOptions::parse(sent(&options)), Ok(options));
        }
    }

    #[test]
    fn an_option_that_nobody_knows_is_named() {
        let dictionary = Dictionary::from([("kep".to_owned(), value(true)), ("label".to_owned(), value("x"))]);
        let error = RequestOptions::parse(dictionary).unwrap_err();
        assert_eq!(error, Error::new(ErrorKind::InvalidArgument, "unknown option `kep`"));
    }

    #[test]
    fn an_option_of_another_type_is_named_with_both() {
        let error = RequestOptions::parse(Dictionary::from([("reboot".to_owned(), value("yes"))])).unwrap_err();
        assert_eq!(error, Error::new(ErrorKind::InvalidArgument, "option `reboot` must be of type b, not s"));
    }
}
