//! How fast the root is scrubbed, beside `veritysetup verify` and a plain direct read of the same bytes, in turn in one run.
//!
//! `cargo bench --package nemos-host --bench scrub [-- MIB]`; as any user, wherever `veritysetup` is.

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nemos_host::integrity::scrub::verity::read_through;
use nemos_model::integrity::VerityTable;
use rustix::fs::{Advice, fadvise};

const BLOCK: u64 = 4096;
const ROUNDS: usize = 7;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let mib: u32 = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(256);
    let folder = tempfile::tempdir_in(".")?;
    let file = folder.path().join("root");
    let size = u64::from(mib) << 20;
    let table = make(&file, size)?;
    let hash = table.root_hash.to_string();
    let offset = format!("--hash-offset={size}");

    let ours = || -> Outcome {
        let mut damaged = 0;
        read_through(&file, &file, &table, 0, &mut |step| {
            damaged += step.damaged.len();
            true
        })?;
        if damaged > 0 { Err("the scrub finds damage where there is none".into()) } else { Ok(()) }
    };
    let veritysetup = || run(Command::new("veritysetup").args(["verify", &offset]).args([&file, &file]).arg(&hash));
    let read = || {
        let input = format!("if={}", file.display());
        run(Command::new("dd").args([&input, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]))
    };

    let ways: [(&str, &dyn Fn() -> Outcome); 3] =
        [("nemos scrub", &ours), ("veritysetup verify", &veritysetup), ("direct read", &read)];
    let mut times = ways.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for at in 0..ways.len() {
            let way = (round + at) % ways.len();
            forget(&file)?;
            let begin = Instant::now();
            ways[way].1()?;
            times[way].push(begin.elapsed());
        }
    }
    let medians = times.map(median);
    println!("{mib} MiB, median of {ROUNDS}, in turn; the time of each as a ratio to the scrub's");
    for ((name, _), time) in ways.iter().zip(medians) {
        let rate = f64::from(mib) / time.as_secs_f64();
        println!("{name:<20} {:>8.3} s {rate:>8.0} MiB/s {:>6.2}", time.as_secs_f64(), ratio(time, medians[0]));
    }
    Ok(())
}

/// A file that does not compress, with its hash tree behind it.
fn make(file: &Path, size: u64) -> Result<VerityTable, Box<dyn Error>> {
    std::io::copy(&mut File::open("/dev/urandom")?.take(size), &mut File::create(file)?)?;
    let hash_offset = format!("--hash-offset={size}");
    let told = Command::new("veritysetup").args(["format", "--salt=-", &hash_offset]).args([file, file]).output()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let hash = told.lines().find_map(|line| line.strip_prefix("Root hash:")).ok_or("veritysetup format failed")?;
    let data_blocks = size / BLOCK;
    let root_hash = hash.trim().parse()?;
    Ok(VerityTable { data_blocks, tree: data_blocks + 1, root_hash, salt: Vec::new(), signed: false, parity: None })
}

/// Has the page cache forget the file, so that everybody reads the disk.
fn forget(file: &Path) -> Outcome {
    let file = File::open(file)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

fn run(command: &mut Command) -> Outcome {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ratio(time: Duration, to: Duration) -> f64 {
    time.as_secs_f64() / to.as_secs_f64()
}
