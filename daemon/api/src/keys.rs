//! Keys: the ways into the overlay's volume. Secrets travel through file descriptors, never in messages.

use std::os::fd::OwnedFd;

use nemos_model::keys::forecast::{Forecast, Way};
use nemos_model::keys::{KeyslotId, Next, Origin, Place, Slot};
use nemos_model::state::DeviceState;
use zbus::{DeserializeDict, Fd, SerializeDict, Type, proxy};

use crate::options::{Dictionary, Options};
use crate::{CallError, Error, ErrorKind};

/// The Keys interface.
#[proxy(
    interface = "org.nemos.Device1.Keys",
    default_service = "org.nemos.Device1",
    default_path = "/org/nemos/Device1"
)]
pub trait Keys {
    /// The key slots that are in use.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn slots(&self) -> Result<Vec<SlotRecord>, CallError>;

    /// Whether the demo key, which everybody has who has the image, opens the volume.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn demo_key(&self) -> Result<bool, CallError>;

    /// The newest recovery key that was made for the fleet, in the format of age; empty if there is none.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn sealed_recovery_key(&self) -> Result<String, CallError>;

    /// Adds a key, and returns its slot once it was seen to open the volume.
    #[zbus(allow_interactive_auth)]
    fn enroll(&self, provider: &str, options: KeyOptions<'_>, secret: Fd<'_>) -> Result<u32, CallError>;

    /// Adds a key in place of the one of that provider, which goes once a boot did not need it.
    #[zbus(allow_interactive_auth)]
    fn rotate(&self, provider: &str, options: KeyOptions<'_>, secret: Fd<'_>) -> Result<u32, CallError>;

    /// Adds a recovery key that the device makes, and gives it out this once: it counts when it was read to its end, within 30
    /// seconds.
    #[zbus(allow_interactive_auth)]
    fn create_recovery_key(&self, options: KeyOptions<'_>) -> Result<zbus::OwnedFd, CallError>;

    /// The fleet keeps the recovery key that was made for it, which is this one.
    #[zbus(allow_interactive_auth)]
    fn acknowledge_sealed_recovery_key(&self, sealed: &str) -> Result<(), CallError>;

    /// Removes the key in a slot.
    #[zbus(allow_interactive_auth)]
    fn remove(&self, slot: u32) -> Result<(), CallError>;

    /// Whether the next boot opens the volume by itself.
    fn forecast(&self) -> Result<(String, ForecastRecord), CallError>;
}

/// Options of what adds a key.
#[derive(Debug, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct KeyOptions<'a> {
    /// A key that opens the volume now; not needed as long as another does that needs nobody.
    pub unlock: Option<Fd<'a>>,
    /// For a key that is kept elsewhere: where, as `LABEL=KEYS:/nemos.key`, or `pkcs11:token=...`.
    pub place: Option<String>,
    /// For a key that a PKCS#11 token keeps: its PIN, if it has one.
    pub pin: Option<Fd<'a>>,
    /// For a recovery key: in place of the one that there is.
    pub rotate: Option<bool>,
    /// For a recovery key: who alone can read what is given out, as age's `age1...`.
    pub recipients: Option<Vec<String>>,
}

/// [`KeyOptions`] as a caller sent them.
#[derive(Debug, Default)]
pub struct TakenKeyOptions {
    /// See [`KeyOptions::unlock`].
    pub unlock: Option<OwnedFd>,
    /// See [`KeyOptions::place`].
    pub place: Option<Place>,
    /// See [`KeyOptions::pin`].
    pub pin: Option<OwnedFd>,
    /// See [`KeyOptions::rotate`].
    pub rotate: bool,
    /// See [`KeyOptions::recipients`].
    pub recipients: Vec<String>,
}

impl TakenKeyOptions {
    /// Reads what a caller sent for a key of its own.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let unlock = options.take_file_descriptor("unlock")?;
        let (place, pin) = (options.take::<String>("place")?, options.take_file_descriptor("pin")?);
        options.finish()?;
        let place = place.map(|text| text.parse::<Place>()).transpose();
        let place = place.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
        Ok(TakenKeyOptions { unlock, place, pin, ..TakenKeyOptions::default() })
    }

    /// Reads what a caller sent for a recovery key.
    pub fn parse_for_recovery(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let unlock = options.take_file_descriptor("unlock")?;
        let (rotate, recipients) = (options.take("rotate")?, options.take("recipients")?);
        options.finish()?;
        let (rotate, recipients) = (rotate.unwrap_or_default(), recipients.unwrap_or_default());
        Ok(TakenKeyOptions { unlock, rotate, recipients, ..TakenKeyOptions::default() })
    }
}

/// A key slot on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct SlotRecord {
    /// Its number.
    pub slot: u32,
    /// What opens it: `tpm2`, `pkcs11`, `key-file`, `demo-key`, `passphrase`, `recovery-key`, another program's token, or
    /// `unknown`.
    pub provider: String,
    /// Where its key is, if it is kept elsewhere.
    pub place: Option<String>,
    /// When it was made, if this device made it.
    pub created: Option<u64>,
    /// When somebody brought it, to open a boot or to change the keys, if it is a recovery key: whoever did has seen it.
    pub used: Option<u64>,
    /// `in-use`, `unconfirmed`, `superseded`, `interrupted`, or `unknown` on a device that has lost its memory.
    pub state: String,
    /// Whether it opened the volume at this boot.
    pub opened_boot: bool,
}

impl SlotRecord {
    /// A key slot, with what the device remembers, where a change may be about it, and the slot that opened this boot.
    pub fn new(slot: &Slot, memory: Option<&DeviceState>, opened_by: Option<KeyslotId>) -> Self {
        let provider = match &slot.origin {
            Origin::Recorded(record) => record.provider.name().to_owned(),
            Origin::Foreign(kind) => kind.clone(),
            Origin::Unrecorded => "unknown".to_owned(),
        };
        let state = match memory.map(DeviceState::key_change) {
            None => "unknown",
            Some(Some(change)) if change.next() == Next::Destroy(slot.id) => "interrupted",
            Some(Some(change)) if change.new_slot() == Some(slot.id) => "unconfirmed",
            Some(Some(change)) if change.old_slot() == Some(slot.id) => "superseded",
            Some(_) => "in-use",
        };
        SlotRecord {
            slot: slot.id.into(),
            provider,
            place: slot.place().map(ToString::to_string),
            created: slot.created().map(|created| created.0),
            used: slot.record().and_then(|record| record.used).map(|used| used.0),
            state: state.to_owned(),
            opened_boot: opened_by == Some(slot.id),
        }
    }
}

/// What the next boot will be like, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ForecastRecord {
    /// Each key slot.
    pub ways: Vec<WayRecord>,
}

/// A way in, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct WayRecord {
    /// The key slot.
    pub slot: u32,
    /// What opens it.
    pub provider: String,
    /// `by-itself`, `needs-somebody`, `locked-out`.
    pub outlook: String,
    /// Why.
    pub why: String,
}

impl From<&Forecast> for ForecastRecord {
    fn from(forecast: &Forecast) -> Self {
        let way = |way: &Way| WayRecord {
            slot: way.slot.into(),
            provider: way.provider.clone(),
            outlook: way.outlook.name().to_owned(),
            why: way.why.clone(),
        };
        ForecastRecord { ways: forecast.ways.iter().map(way).collect() }
    }
}
