//! `nemosctl keys`: the ways into the overlay's volume.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use nemos_api::CallError;
use nemos_api::keys::{ForecastRecord, KeyOptions, KeysProxy, SlotRecord, WayRecord};
use nemos_model::health::Health;
use nemos_model::keys::forecast::Outlook;
use nemos_model::keys::{FilePlace, Place, Provider, TokenUri};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::Serialize;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Fd};
use zeroize::Zeroizing;

use crate::arguments::{Keys as Arguments, KeysCommand as Command, NewKey, Recovery};
use crate::key_file::KeyFile;
use crate::output::{Output, agrees, can_ask, print};
use crate::style::Style;
use crate::{Failure, table, text};

/// Most bytes that go into a pipe at once.
const MAX_SECRET: u64 = 64 << 10;

/// A key slot; null where it is not known. This is also its shape in `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Key {
    slot: u32,
    provider: String,
    /// `in-use`, `unconfirmed`, `superseded`, `interrupted`, `unknown`.
    state: String,
    /// ISO 8601 in UTC.
    created: Option<String>,
    /// When somebody brought a recovery key, ISO 8601 in UTC.
    used: Option<String>,
    opened_boot: bool,
    /// Where its key is, if it is kept elsewhere: `LABEL=KEYS:/nemos.key`, `pkcs11:token=...`.
    place: Option<String>,
}

/// What the next boot will be like, as in `--json`.
#[derive(Debug, Serialize)]
struct Forecast {
    /// `by-itself`, `needs-somebody`, `locked-out`.
    outlook: String,
    ways: Vec<Way>,
}

/// A way in.
#[derive(Debug, Serialize)]
struct Way {
    slot: u32,
    provider: String,
    outlook: String,
    why: String,
}

/// What came of adding a key, as in `--json`.
#[derive(Debug, Serialize)]
struct Added {
    /// `null` for a recovery key.
    slot: Option<u32>,
    /// Where it is, if it is kept elsewhere.
    place: Option<String>,
    /// The recovery key; it is shown this once.
    recovery_key: Option<Zeroizing<String>>,
    /// The recovery key, encrypted by age for its recipients.
    sealed_key: Option<Zeroizing<String>>,
    #[serde(skip)]
    waits: bool,
}

/// A recovery key that only its recipients can read, as in `--json`.
#[derive(Debug, Serialize)]
struct Escrow {
    sealed_key: String,
}

/// Carries out a command about keys.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    // Secrets pass through its memory.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(io::Error::from)?;
    // What this very command changes has to be asked for each time.
    let proxy = KeysProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    match arguments.command.unwrap_or(Command::List) {
        Command::List => {
            let slots: Vec<Key> = proxy.slots().await?.into_iter().map(Key::from).collect();
            output.show(&slots, |slots| render(slots))?;
            Ok(0)
        }
        Command::Enroll(new) => add(&proxy, &new, false, output).await,
        Command::Rotate(new) => add(&proxy, &new, true, output).await,
        Command::Recovery(Recovery::Create { recipient, rotate, unlock_file }) => {
            let provider = Provider::RecoveryKey.name().to_owned();
            let new = NewKey { provider, unlock_file, recipient, ..NewKey::default() };
            add(&proxy, &new, rotate, output).await
        }
        Command::Recovery(Recovery::Show) => {
            let sealed_key = proxy.sealed_recovery_key().await?;
            if sealed_key.is_empty() {
                return Err(Failure::NotSealed);
            }
            output.show(&Escrow { sealed_key }, |escrow| format!("{}\n", escrow.sealed_key.trim_end()))?;
            Ok(0)
        }
        Command::Recovery(Recovery::Acknowledge { file }) => {
            let unusable = || Failure::Usage(format!("{}: it is no text, as a sealed recovery key is", file.display()));
            let sealed_key = String::from_utf8(secret_in(&file)?.to_vec()).map_err(|_| unusable())?;
            proxy.acknowledge_sealed_recovery_key(&sealed_key).await?;
            output.show(&Escrow { sealed_key }, |_| "the fleet keeps the recovery key of this device\n".to_owned())?;
            Ok(0)
        }
        Command::Remove { slot, yes } => remove(&proxy, slot, yes, output).await,
        Command::Forecast => {
            let forecast = Forecast::from(proxy.forecast().await.map_err(Failure::NotForeseen)?);
            output.show(&forecast, |forecast| forecast.render(output.style))?;
            Ok(forecast.exit_code())
        }
    }
}

async fn add(proxy: &KeysProxy<'_>, new: &NewKey, rotates: bool, output: Output) -> Result<u8, Failure> {
    let is_recovery = new.provider == Provider::RecoveryKey.name();
    if !is_recovery && !new.recipient.is_empty() || is_recovery && new.secret_file.is_some() {
        return Err(Failure::Usage("the device makes recovery keys, and encrypts only those for a recipient".into()));
    }
    let place = place(proxy, new, rotates).await?;
    let unlock = new.unlock_file.as_deref().map(secret_in).transpose()?.map(|secret| send(&secret)).transpose()?;
    let unlock = unlock.as_ref().map(Fd::from);
    if is_recovery {
        return add_recovery_key(proxy, new, rotates, unlock, output).await;
    }
    let mut made = None;
    let secret = match (&new.secret_file, &place) {
        (Some(file), Some(_)) => secret_in(file)?,
        (Some(file), None) => typeable(secret_in(file)?),
        (None, Some(Place::File(file))) => {
            made.insert(KeyFile::make(file, rotates && new.path.is_none())?).secret.clone()
        }
        (None, None) if new.provider == Provider::Passphrase.name() => typed()?,
        // Its token makes it.
        (None, _) => Zeroizing::new(Vec::new()),
    };
    let pin = new.pin_file.as_deref().map(secret_in).transpose()?.map(|pin| send(&typeable(pin))).transpose()?;
    let (pin, place) = (pin.as_ref().map(Fd::from), place.map(|place| place.to_string()));
    let options = KeyOptions { unlock, place: place.clone(), pin, ..KeyOptions::default() };
    let secret = send(&secret)?;
    let call = if rotates {
        proxy.rotate(&new.provider, options, (&secret).into()).await
    } else {
        proxy.enroll(&new.provider, options, (&secret).into()).await
    };
    // Unless nobody knows what became of it: then its slot may be there.
    if let (Err(CallError::Refused(_)), Some(made)) = (&call, made) {
        made.discard();
    }
    let added = Added { slot: Some(call?), place, recovery_key: None, sealed_key: None, waits: rotates };
    output.show(&added, Added::render)?;
    Ok(0)
}

/// Has the device make a recovery key, and shows it.
async fn add_recovery_key(
    proxy: &KeysProxy<'_>,
    new: &NewKey,
    rotates: bool,
    unlock: Option<Fd<'_>>,
    output: Output,
) -> Result<u8, Failure> {
    let is_sealed = !new.recipient.is_empty();
    let recipients = is_sealed.then(|| new.recipient.clone());
    let options = KeyOptions { unlock, rotate: Some(rotates), recipients, ..KeyOptions::default() };
    let before = recovery_keys(proxy).await?;
    let mut key = Zeroizing::new(String::with_capacity(16 << 10));
    fs::File::from(OwnedFd::from(proxy.create_recovery_key(options).await?)).read_to_string(&mut key)?;
    // It ends when nemosd has noted that it was read, or could not.
    let after = recovery_keys(proxy).await;
    if after.as_ref().is_ok_and(|after| after.is_subset(&before)) {
        return Err(Failure::NotKept);
    }
    let (recovery_key, sealed_key) = if is_sealed { (None, Some(key)) } else { (Some(key), None) };
    let added = Added { slot: None, place: None, recovery_key, sealed_key, waits: rotates };
    match (output.hand_over(&added, Added::render), after) {
        (Ok(()), Ok(_)) => Ok(0),
        (Ok(()), Err(error)) => Err(Failure::MayBeKept(Box::new(error))),
        (Err(error), after) => {
            let slot = after.ok().and_then(|after| after.difference(&before).next().map(|(slot, _)| *slot));
            let is_removed = match slot {
                Some(slot) => proxy.remove(slot).await.is_ok(),
                None => false,
            };
            Err(if is_removed { Failure::NotShown(error) } else { Failure::NotShownAndThere(error) })
        }
    }
}

/// The recovery keys that are known to open the volume: each by its slot, and when that was made.
async fn recovery_keys(proxy: &KeysProxy<'_>) -> Result<BTreeSet<(u32, Option<u64>)>, Failure> {
    let counts = |state: &str| !matches!(state, "interrupted" | "unknown");
    let is_one = |slot: &SlotRecord| slot.provider == Provider::RecoveryKey.name() && counts(&slot.state);
    let slots = proxy.slots().await?.into_iter().filter(is_one);
    Ok(slots.map(|slot| (slot.slot, slot.created)).collect())
}

/// Where a key is that is kept elsewhere: where one says, or, for one that takes the place of another, as that one is.
async fn place(proxy: &KeysProxy<'_>, new: &NewKey, rotates: bool) -> Result<Option<Place>, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let said = match (&new.device, &new.path, &new.token_uri) {
        (Some(device), Some(path), None) => Some(FilePlace::new(device, path).map(Place::File)),
        (None, None, Some(uri)) => Some(TokenUri::new(uri).map(Place::Token)),
        (None, None, None) => None,
        _ => return Err(usage(&"a key is in a file or on a token")),
    };
    let said = said.transpose().map_err(|error| usage(&error))?;
    match (new.provider.parse(), said) {
        (Ok(Provider::KeyFile), Some(place @ Place::File(_)))
        | (Ok(Provider::Pkcs11), Some(place @ Place::Token(_))) => Ok(Some(place)),
        (Ok(Provider::KeyFile | Provider::Pkcs11), None) if rotates => {
            let slots = proxy.slots().await?.into_iter().filter(|slot| slot.provider == new.provider);
            let places: Vec<String> = slots.filter_map(|slot| slot.place).collect();
            let [old] = places.as_slice() else {
                return Err(usage(
                    &"not one key of that provider is enrolled, but none or several: say which is meant",
                ));
            };
            let beside = |old| match old {
                Place::File(file) => file.beside().map(Place::File),
                Place::Token(uri) => Ok(Place::Token(uri)),
            };
            old.parse().and_then(beside).map(Some).map_err(|error| usage(&error))
        }
        (Ok(Provider::KeyFile), _) => {
            Err(usage(&"say where the key file is to be: --device LABEL=... --path /nemos.key"))
        }
        (Ok(Provider::Pkcs11), _) => {
            Err(usage(&"say which token keeps the key: --token-uri pkcs11:token=...;object=..."))
        }
        (_, None) if new.pin_file.is_none() => Ok(None),
        _ => Err(usage(&"only a key file is on another device, and only a PKCS#11 token has a URI and a PIN")),
    }
}

/// Says what it means for the next boot, and asks, if it means something.
async fn remove(proxy: &KeysProxy<'_>, slot: u32, yes: bool, output: Output) -> Result<u8, Failure> {
    let mut after = Forecast::from(proxy.forecast().await?);
    after.ways.retain(|way| way.slot != slot);
    after.best().name().clone_into(&mut after.outlook);
    if !yes && after.exit_code() != 0 {
        let warning = match after.exit_code() {
            1 => "without this key, the next boot waits at its console for a passphrase, recovery key or PIN",
            _ => "without this key, nothing that is known opens the overlay at the next boot",
        };
        if !can_ask(output) {
            return Err(Failure::Usage(format!("{warning}; say --yes if that is meant")));
        }
        print(&format!("{warning}.\nRemove it? [y/N] "))?;
        if !agrees()? {
            return Err(Failure::Declined);
        }
    }
    proxy.remove(slot).await?;
    output.show(&after, |_| format!("the key in slot {slot} is destroyed\n"))?;
    Ok(0)
}

/// What is in a file, or comes through standard input.
fn secret_in(file: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let mut secret = Zeroizing::new(Vec::with_capacity(65_536));
    let read = if file == Path::new("-") {
        io::stdin().lock().take(MAX_SECRET + 1).read_to_end(&mut secret)
    } else {
        fs::File::open(file).and_then(|opened| opened.take(MAX_SECRET + 1).read_to_end(&mut secret))
    };
    match read.map_err(|error| unusable(&error))? as u64 {
        1..=MAX_SECRET => Ok(secret),
        _ => Err(unusable(&"a secret has 1 to 65536 bytes")),
    }
}

/// An editor ends a file with a newline; nobody can type one.
fn typeable(mut secret: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    secret
}

fn typed() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let nobody =
        |error| Failure::Usage(format!("nobody can be asked for the passphrase ({error}); give it with --secret-file"));
    let ask = |question| rpassword::prompt_password(question).map(Zeroizing::new).map_err(nobody);
    let (first, again) = (ask("New passphrase: ")?, ask("Again: ")?);
    if *first == *again {
        Ok(Zeroizing::new(first.as_bytes().to_vec()))
    } else {
        Err(Failure::Usage("that was not the same twice; nothing was changed".into()))
    }
}

/// A pipe with the secret in it.
fn send(secret: &[u8]) -> io::Result<OwnedFd> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(secret)?;
    Ok(reader.into())
}

fn render(slots: &[Key]) -> String {
    let head = ["SLOT", "PROVIDER", "STATE", "CREATED", "USED", "OPENED THIS BOOT", "WHERE"].map(str::to_owned);
    let row = |slot: &Key| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let opened = if slot.opened_boot { "yes" } else { "-" };
        let (created, used, place) = (or_dash(&slot.created), or_dash(&slot.used), or_dash(&slot.place));
        [slot.slot.to_string(), slot.provider.clone(), slot.state.clone(), created, used, opened.into(), place]
    };
    table::columns(&std::iter::once(head).chain(slots.iter().map(row)).collect::<Vec<_>>())
}

impl From<SlotRecord> for Key {
    fn from(record: SlotRecord) -> Self {
        let SlotRecord { slot, provider, place, created, used, state, opened_boot } = record;
        let (created, used) = (created.and_then(text::time), used.and_then(text::time));
        Key { slot, provider, state, created, used, opened_boot, place }
    }
}

impl From<(String, ForecastRecord)> for Forecast {
    fn from((outlook, record): (String, ForecastRecord)) -> Self {
        let way = |way: WayRecord| {
            let WayRecord { slot, provider, outlook, why } = way;
            Way { slot, provider, outlook, why }
        };
        Forecast { outlook, ways: record.ways.into_iter().map(way).collect() }
    }
}

impl Forecast {
    /// As the best of the ways.
    fn best(&self) -> Outlook {
        let has = |outlook: &Outlook| self.ways.iter().any(|way| way.outlook == outlook.name());
        Outlook::ALL.iter().copied().find(has).unwrap_or(Outlook::LockedOut)
    }

    fn exit_code(&self) -> u8 {
        match self.outlook.parse() {
            Ok(Outlook::ByItself) => 0,
            Ok(Outlook::NeedsSomebody) => 1,
            Ok(Outlook::LockedOut) | Err(_) => 2,
        }
    }

    fn render(&self, style: Style) -> String {
        let (health, words) = match self.exit_code() {
            0 => (Health::Ok, "the next boot opens the overlay by itself"),
            1 => (Health::Warning, "the next boot waits at its console for a passphrase, recovery key or PIN"),
            _ => (Health::Critical, "nothing that is known opens the overlay at the next boot"),
        };
        let row =
            |way: &Way| [format!("  slot {}", way.slot), way.provider.clone(), way.outlook.clone(), way.why.clone()];
        let ways = table::columns(&self.ways.iter().map(row).collect::<Vec<_>>());
        format!("{}\n{ways}", style.health(health, words))
    }
}

impl Added {
    fn render(&self) -> String {
        let is_file = self.place.as_ref().is_some_and(|place| matches!(place.parse(), Ok(Place::File(_))));
        let waits = match (self.waits, is_file) {
            (false, _) => "",
            (true, false) => "the old one goes once a boot did not need it\n",
            (true, true) => {
                "the old one opens nothing once a boot did not need it; its file stays until it is deleted or rotated again\n"
            }
        };
        if let Some(sealed) = &self.sealed_key {
            return format!("{}\n", sealed.trim_end());
        }
        match (&self.recovery_key, self.slot) {
            (Some(key), _) => {
                format!("{}\n\nwrite it down: it is shown this once, and opens this device\n{waits}", **key)
            }
            (None, slot) => {
                let place = self.place.as_ref().map_or_else(String::new, |place| format!(" ({place})"));
                format!(
                    "the key{place} is in slot {}, and was seen to open the volume\n{waits}",
                    slot.unwrap_or_default()
                )
            }
        }
    }
}
