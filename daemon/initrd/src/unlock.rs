//! The ways into the overlay's volume, in the order in which they are tried: what needs nobody first.

use std::path::Path;
use std::time::Duration;

use nemos_host::keys::{Key, Secret, ask, credential, read_key_file, slots, try_key, try_secret};
use nemos_model::keys::{DEMO_KEY_FILE, KeyslotId, Origin, Provider, Slot};
use tracing::{info, warn};

/// How long the console waits for an answer: a device without people comes up all the same.
const ANSWER: Duration = Duration::from_secs(120);
/// How often it asks.
const TRIES: u32 = 3;

/// A key that opens the volume.
pub struct Unlocked {
    /// It.
    pub key: Key,
    /// What it is.
    pub provider: Provider,
    /// The key slot that it opens.
    pub slot: KeyslotId,
}

/// Finds a key that opens the volume.
pub fn unlock(partition: &Path) -> Result<Unlocked, String> {
    let slots = slots(partition).map_err(|error| error.to_string())?;
    let has_tpm2 = slots.iter().any(|slot| slot.provider() == Some(Provider::Tpm2));
    if has_tpm2 {
        match try_key(partition, &Key::Tpm2, None) {
            Ok(slot) => return Ok(Unlocked { key: Key::Tpm2, provider: Provider::Tpm2, slot }),
            Err(error) => warn!("{error}"),
        }
    }
    let no_demo_key = match by_demo_key(partition, &slots) {
        Ok(unlocked) => return Ok(unlocked),
        Err(error) => error,
    };
    if slots.iter().any(|slot| slot.provider().is_some_and(Provider::needs_somebody)) {
        info!("{no_demo_key}; somebody has to open the overlay");
        return by_somebody(partition, &slots);
    }
    Err(no_demo_key)
}

/// Stretching a passphrase takes a second: the demo key is tried only where it may fit.
fn by_demo_key(partition: &Path, slots: &[Slot]) -> Result<Unlocked, String> {
    let is_of_it = |slot: &&Slot| slot.provider() == Some(Provider::DemoKey);
    // Who made a volume before us recorded nothing.
    let is_unrecorded = |slot: &&Slot| slot.origin == Origin::Unrecorded;
    let fits: Vec<&Slot> = slots.iter().filter(is_of_it).chain(slots.iter().filter(is_unrecorded)).collect();
    if fits.is_empty() {
        return Err(format!("the demo key has no key slot on {}", partition.display()));
    }
    let secret = read_key_file(Path::new(DEMO_KEY_FILE)).map_err(|error| error.to_string())?;
    let mut refusal = String::new();
    for slot in fits {
        match try_secret(partition, &secret, Some(slot.id)) {
            Ok(slot) => return Ok(Unlocked { key: Key::Secret(secret), provider: Provider::DemoKey, slot }),
            Err(error) => refusal = error.to_string(),
        }
    }
    Err(refusal)
}

fn by_somebody(partition: &Path, slots: &[Slot]) -> Result<Unlocked, String> {
    if let Some(unlocked) = credential().and_then(|given| by_answer(partition, slots, given)) {
        return Ok(unlocked);
    }
    let mut question = "Passphrase or recovery key of this device";
    for _ in 0..TRIES {
        match ask(question, ANSWER) {
            Ok(Some(answer)) => match by_answer(partition, slots, answer) {
                Some(unlocked) => return Ok(unlocked),
                None => question = "That was not it. Passphrase or recovery key of this device",
            },
            Ok(None) => return Err(format!("nobody typed a passphrase or recovery key within {} s", ANSWER.as_secs())),
            Err(error) => return Err(format!("nobody can be asked for a passphrase or recovery key: {error}")),
        }
    }
    Err(format!("what was typed, {TRIES} times, opens no key slot of {}", partition.display()))
}

fn by_answer(partition: &Path, slots: &[Slot], answer: Secret) -> Option<Unlocked> {
    let meant = answer.as_recovery_key();
    [Some(answer), meant].into_iter().flatten().find_map(|secret| match try_secret(partition, &secret, None) {
        Ok(slot) => {
            let provider = slots.iter().find(|known| known.id == slot).and_then(Slot::provider);
            Some(Unlocked { key: Key::Secret(secret), provider: provider.unwrap_or(Provider::Passphrase), slot })
        }
        Err(error) => {
            warn!("{error}");
            None
        }
    })
}
