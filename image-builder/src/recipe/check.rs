//! What a recipe may ask for, beyond being well written.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use nemos_model::boot::PRELOADED_HASH_OPTION;
use nemos_model::integrity::protection::{FEC_ROOTS, PROTECTION_OPTION};
use nemos_model::keys::Policy;
use nemos_model::keys::policy::BadPolicy;
use nemos_model::overlay::archive::Policy as ImportPolicy;
use nemos_model::partitions::Partition;

use super::{Configurations, Container, OwnPartition, Recipe, ShippedConfiguration, Sizes, User};

/// What cannot be, and where it is written.
#[derive(Debug)]
pub struct Fault {
    /// Keys, and places in lists.
    pub way: Vec<String>,
    /// What is wrong, and what would be right.
    pub what: String,
}

type Checked = Result<(), Fault>;

fn fault<const STEPS: usize>(way: [&str; STEPS], what: String) -> Fault {
    Fault { way: way.map(str::to_owned).to_vec(), what }
}

/// Checks all of it.
pub fn check(recipe: &Recipe) -> Checked {
    sizes(&recipe.partitions_mib)?;
    partitions(&recipe.partitions)?;
    let level = recipe.squashfs.zstd_level;
    if !(1..=22).contains(&level) {
        return Err(fault(["squashfs", "zstd-level"], format!("zstd has the levels 1 to 22, not {level}")));
    }
    keys(&recipe.keys)?;
    configurations(&recipe.configurations)?;
    recipe.users.iter().try_for_each(|(name, account)| user(name, account))?;
    if let Some(path) = recipe.files.keys().find(|path| !is_path(path)) {
        let what = format!("file `{path}`: a path begins with `/`, and has neither `..` nor white space");
        return Err(fault(["files", path], what));
    }
    words(recipe)?;
    let ours = ["roothash", PRELOADED_HASH_OPTION, PROTECTION_OPTION];
    let is_ours = |word: &String| ours.iter().any(|name| word.split('=').next() == Some(name));
    let line = &recipe.kernel.command_line;
    if let Some(at) = line.iter().position(is_ours) {
        let what = format!("`{}`: the builder puts it into the command line; [verity] has the options", line[at]);
        return Err(fault(["kernel", "command-line", &at.to_string()], what));
    }
    let roots = recipe.verity.fec_roots;
    if roots != 0 && !FEC_ROOTS.contains(&roots) {
        let what = format!("fec-roots is 0 for no parity, or 2 to 24, not {roots}");
        return Err(fault(["verity", "fec-roots"], what));
    }
    packages(&["debian", "packages"], &recipe.debian.packages)?;
    containers(&recipe.containers)?;
    match recipe.bootstrap.as_ref().and_then(|bootstrap| bootstrap.sha256.as_ref()) {
        Some(digest) if !is_digest(digest) => Err(fault(["bootstrap", "sha256"], not_a_digest(digest))),
        _ => Ok(()),
    }
}

fn sizes(sizes: &Sizes) -> Checked {
    let smallest = [
        (Partition::Esp, "esp", 64, "the unified kernel image, with space for a second one"),
        (Partition::Home, "home", 16, "ext4"),
        (Partition::OciStorage, "oci-storage", 304, "mkfs.xfs"),
        (Partition::State, "state", 8, "ext4 with a journal"),
        (Partition::Root, "root", 320, "mkfs.xfs inside of LUKS2 with integrity"),
    ];
    for (partition, key, mib, what_for) in smallest {
        if sizes.of(partition).is_some_and(|size| size < mib) {
            let what = format!("{partition} needs {mib} MiB at least, for {what_for}");
            return Err(fault(["partitions-mib", key], what));
        }
    }
    Ok(())
}

fn partitions(added: &BTreeMap<String, OwnPartition>) -> Checked {
    /// UTF-16 units that a GPT has for a name, less those of `p.lx`.
    const LONGEST: usize = 36 - 4;
    let ours = Partition::ALL.map(Partition::label);
    let mut taken: BTreeSet<&str> = Partition::ALL.into_iter().filter_map(Partition::mount_point).collect();
    for (name, OwnPartition { size_mib, mount_point, file_system }) in added {
        let label = format!("p.lx{name}");
        if !is_name(name) || name.len() > LONGEST {
            let what = format!("partition `{name}`: a name is of at most {LONGEST} letters a-z, 0-9, `-` and `_`");
            return Err(fault(["partitions", name], what));
        }
        if ours.contains(&label.as_str()) {
            let what = format!("every disk has a partition {label} already; [partitions-mib] has its size");
            return Err(fault(["partitions", name], what));
        }
        if !is_path(mount_point) || !taken.insert(mount_point) {
            let what = format!("{label} cannot be mounted at `{mount_point}`: that is no path, or taken");
            return Err(fault(["partitions", name, "mount-point"], what));
        }
        let least = file_system.least_mib();
        if *size_mib < least {
            let what = format!("{label} needs {least} MiB at least, for {file_system}");
            return Err(fault(["partitions", name, "size-mib"], what));
        }
    }
    Ok(())
}

fn keys(policy: &Policy) -> Checked {
    policy.check().map_err(|error| {
        let what = error.to_string();
        match (error, policy.named_twice()) {
            (BadPolicy::Unbound | BadPolicy::NotOfTheFirmware(_) | BadPolicy::PcrTwice(_), _) => {
                fault(["keys", "tpm2-pcrs"], what)
            }
            (_, Some(index)) => fault(["keys", "order", &index.to_string()], what),
            (_, None) => fault(["keys", "recovery-key"], what),
        }
    })?;
    for (number, recipient) in policy.recipients.iter().enumerate() {
        if let Err(reason) = age::x25519::Recipient::from_str(recipient) {
            let what = format!("`{recipient}` is not the public half of an age key, as age1...: {reason}");
            return Err(fault(["keys", "recipients", &number.to_string()], what));
        }
    }
    Ok(())
}

fn configurations(configurations: &Configurations) -> Checked {
    for (number, signer) in configurations.signers.iter().enumerate() {
        let alone = ImportPolicy { signers: vec![signer.clone()], require_signature: false };
        alone.check().map_err(|error| fault(["configurations", "signers", &number.to_string()], error.to_string()))?;
    }
    let policy = configurations.policy().check();
    policy.map_err(|error| fault(["configurations", "require-signature"], error.to_string()))?;
    let mut names = BTreeSet::new();
    for (number, ShippedConfiguration { name, sha256, .. }) in configurations.shipped.iter().enumerate() {
        let at = |key: &str, what: String| {
            Err(fault(
                ["configurations", "shipped", &number.to_string(), key],
                format!("configuration `{name}`: {what}"),
            ))
        };
        if name.is_factory() {
            return at("name", "that is the image itself".to_owned());
        }
        if !names.insert(name) {
            return at("name", "there is another one of that name".to_owned());
        }
        if !is_digest(sha256) {
            return at("sha256", not_a_digest(sha256));
        }
    }
    Ok(())
}

fn user(name: &str, user: &User) -> Checked {
    if !is_name(name) || !user.groups.iter().all(|group| is_name(group)) {
        let what = format!("user `{name}`: names of users and groups are a-z, 0-9, `-` and `_`");
        return Err(fault(["users", name], what));
    }
    if user.password_hash.as_ref().is_some_and(|hash| !hash.starts_with('$')) {
        let what = format!("user `{name}`: the password is not hashed; make a hash with: openssl passwd -6");
        return Err(fault(["users", name, "password-hash"], what));
    }
    Ok(())
}

fn words(recipe: &Recipe) -> Checked {
    let lists = [
        (["debian", "components"], &recipe.debian.components),
        (["debian", "exclude"], &recipe.debian.exclude),
        (["units", "enable"], &recipe.units.enable),
        (["units", "disable"], &recipe.units.disable),
        (["units", "mask"], &recipe.units.mask),
        (["kernel", "command-line"], &recipe.kernel.command_line),
    ];
    for ([table, key], list) in lists {
        if let Some(at) = list.iter().position(|word| !is_word(word)) {
            return Err(fault([table, key, &at.to_string()], format!("`{}`: one word was expected", list[at])));
        }
    }
    let suite = &recipe.debian.suite;
    if is_word(suite) { Ok(()) } else { Err(fault(["debian", "suite"], format!("`{suite}`: one word was expected"))) }
}

/// Debian Policy, 5.6.1.
fn packages(way: &[&str], names: &[String]) -> Checked {
    let fits = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
            && name.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '+' | '-' | '.'))
    };
    let Some(at) = names.iter().position(|name| !fits(name)) else { return Ok(()) };
    let way = way.iter().map(|step| (*step).to_owned()).chain([at.to_string()]).collect();
    Err(Fault { way, what: format!("`{}`: names of packages are a-z, 0-9, `+`, `-` and `.`", names[at]) })
}

fn containers(containers: &[Container]) -> Checked {
    let mut names = BTreeSet::new();
    for (number, container) in containers.iter().enumerate() {
        let number = number.to_string();
        let Container { name, packages: from, setup, archive, sha256, command } = container;
        let at =
            |key: &str, what: String| Err(fault(["containers", &number, key], format!("container `{name}`: {what}")));
        if !is_image_name(name) {
            return at(
                "name",
                "a name is HOST[:PORT]/PATH:TAG in small letters, as in localhost/busybox:latest".to_owned(),
            );
        }
        if !names.insert(name) {
            return at("name", "there is another one of that name".to_owned());
        }
        packages(&["containers", &number, "packages"], from)?;
        match (from.is_empty(), archive, sha256) {
            (false, None, None) => {}
            (true, Some(_), Some(digest)) if is_digest(digest) => {
                if !setup.is_empty() || !command.is_empty() {
                    return at("archive", "an archive says itself what is in it and what it runs".to_owned());
                }
            }
            (true, Some(_), Some(digest)) => return at("sha256", not_a_digest(digest)),
            (true, Some(_), None) => return at("archive", "an archive is named with its sha256".to_owned()),
            _ => return at("name", "it is made of packages, or from an archive with its sha256".to_owned()),
        }
        if setup.first().is_some_and(|program| !program.starts_with('/')) {
            return at("setup", format!("`{}`: a program is named by its path", setup[0]));
        }
    }
    Ok(())
}

fn not_a_digest(digest: &str) -> String {
    format!("`{digest}`: a SHA-256 has 64 hexadecimal digits, in small letters")
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_image_name(name: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    let tag = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let Some((path, label)) = name.rsplit_once(':') else { return false };
    let Some((host, path)) = path.split_once('/') else { return false };
    let (registry, number) = host.split_once(':').unwrap_or((host, "443"));
    part(registry) && number.parse::<u16>().is_ok() && path.split('/').all(part) && tag(label)
}

fn is_word(word: &str) -> bool {
    !word.is_empty() && !word.contains(char::is_whitespace)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

fn is_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !path.contains(char::is_whitespace)
}
