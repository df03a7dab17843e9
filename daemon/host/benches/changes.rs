//! How fast changes are told, beside `find` over the overlay's upper folder, and `diff -r` of the two trees, in turn in one run; and
//! how much memory that takes.
//!
//! `cargo bench --package nemos-host --bench changes [-- COUNT]`; as root, for the overlay's attributes. Two trees of so many
//! files (100,000 if not said) are made in a folder of the current one: half of them changed, a quarter added, a quarter copied up and
//! as they were.

use std::env;
use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nemos_host::overlay::changes::Trees;

const ROUNDS: usize = 5;
/// Files of a folder, and folders of one.
const FAN: usize = 100;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let count: usize = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir_in(".")?;
    let [upper, lower] = ["upper", "lower"].map(|name| folder.path().join(name));
    make(&upper, &lower, count)?;
    let trees = Trees { upper: &upper, lower: &lower };

    let ours = || -> Outcome {
        let mut told = 0;
        trees.changes(Path::new(""), None, &mut |_| {
            told += 1;
            ControlFlow::Continue(())
        })?;
        if told * 4 / 3 >= count { Ok(()) } else { Err(format!("{told} changes of {count} files").into()) }
    };
    let find = || run(Command::new("find").arg(&upper).args(["-printf", "%p %s %m %u %g %T@\n"]));
    let diff = || run(Command::new("diff").args(["-r", "-q", "--no-dereference"]).args([&lower, &upper]));

    let before = peak()?;
    ours()?;
    let memory = peak()?.saturating_sub(before);
    let ways: [(&str, &dyn Fn() -> Outcome); 3] =
        [("nemos changes", &ours), ("find -printf", &find), ("diff -rq", &diff)];
    let mut times = ways.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for at in 0..ways.len() {
            let way = (round + at) % ways.len();
            let begin = Instant::now();
            ways[way].1()?;
            times[way].push(begin.elapsed());
        }
    }
    let medians = times.map(median);
    println!("{count} files, median of {ROUNDS}, in turn; the time of each as a ratio to ours");
    for ((name, _), time) in ways.iter().zip(medians) {
        println!("{name:<20} {:>8.3} s {:>6.2}", time.as_secs_f64(), time.as_secs_f64() / medians[0].as_secs_f64());
    }
    println!("peak memory of a walk: {memory} KiB more than before it");
    Ok(())
}

fn make(upper: &Path, lower: &Path, count: usize) -> Outcome {
    for number in 0..count {
        let path = format!("{}/{}/file-{number:06}", number / FAN / FAN, number / FAN % FAN);
        let (above, below) = (upper.join(&path), lower.join(&path));
        if number % FAN == 0 {
            for file in [&above, &below] {
                fs::create_dir_all(file.parent().ok_or("a file has a folder")?)?;
            }
        }
        let shipped = format!("shipped {number:06}\n").repeat(20);
        match number % 4 {
            // Of the same size: its content has to be read.
            0 | 1 => fs::write(&above, shipped.replace('s', "S"))?,
            _ => fs::write(&above, &shipped)?,
        }
        if number % 4 != 2 {
            fs::write(&below, &shipped)?;
            let modified = fs::metadata(&below)?.modified()?;
            fs::File::options().write(true).open(&above)?.set_modified(modified)?;
        }
    }
    Ok(())
}

/// The most memory that this process has had so far, in KiB.
fn peak() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A diff that finds differences ends with 1.
fn run(command: &mut Command) -> Outcome {
    let status = command.stdout(Stdio::null()).status()?;
    if status.code().is_some_and(|code| code < 2) {
        Ok(())
    } else {
        Err(format!("{command:?} ended with {status}").into())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
