//! The engine: what is in the corpus, then inputs that it makes itself until the time is over.
//!
//! A target is a function of bytes, so any fuzzer could drive it. This one runs on stable Rust
//! wherever `cargo test` does, and the same seed makes the same inputs; in return it does not know
//! what code an input reaches. Raw bytes seldom get past a parser's first line, so most inputs are
//! valid ones of the target's own generator, or such with some mutations: words of a dictionary,
//! extreme numbers and lengths, pieces of other inputs.

use std::{
    cell::Cell,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, Once, mpsc},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Seconds of a target where `FUZZ_SECONDS` does not say: it is part of every test run.
const SECONDS: f64 = 2.0;
/// An input that takes longer is a failure: what is under test has to answer while others wait.
const SLOW: Duration = Duration::from_secs(20);
/// Lengths at and around which parsers have their bounds.
const LENGTHS: &[usize] =
    &[0, 1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 1_024, 4_097, 70_000];
/// Numbers at and around which parsers have their bounds.
const NUMBERS: &[&str] = &[
    "0",
    "00",
    "1",
    "-1",
    "+1",
    "99",
    "100",
    "1000",
    "1001",
    "65536",
    "1048576",
    "1048577",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "0.5",
    "NaN",
];
/// Longest input: the bounds of the product lie far below.
const LONGEST: usize = 128 * 1024;
/// Runs that making a failing input smaller may take.
const SHRINK_RUNS: usize = 3_000;

/// One thing that reads outside input, and what must hold for it.
pub(crate) struct Target {
    /// Name of its corpus folder.
    pub(crate) name: &'static str,
    /// Panics where something does not hold. Returns whether the input was taken: a run in which
    /// nearly none is has tested the refusals only.
    pub(crate) check: fn(&[u8]) -> bool,
    /// A valid input.
    pub(crate) valid: fn(&mut StdRng) -> Vec<u8>,
    /// Words that mean something to it.
    pub(crate) words: &'static [&'static str],
}

thread_local! {
    /// Panics of this thread are expected and told in another way.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// FNV-1a: names of files and seeds must not change with the toolchain.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(files) = fs::read_dir(folder(name)) else { return Vec::new() };
    let mut files: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// What a failing input did.
fn outcome(target: &Target, input: &[u8]) -> Result<bool, String> {
    catch_unwind(AssertUnwindSafe(|| (target.check)(input))).map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a text".to_owned())
    })
}

/// Leaves out whatever a failing input does not need to fail.
fn shrink(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut runs = 0;
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() && runs < SHRINK_RUNS {
            let mut shorter = input.clone();
            shorter.drain(at..input.len().min(at + piece));
            runs += 1;
            if outcome(target, &shorter).is_err() { input = shorter } else { at += piece }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    input
}

/// Keeps a failing input in the corpus, where it is run first from now on. Returns what to say.
fn keep(target: &Target, input: &[u8], seed: u64, reason: &str) -> String {
    let path = folder(target.name).join(format!("failed-{:016x}", hash(input)));
    let kept = fs::create_dir_all(folder(target.name)).and_then(|()| fs::write(&path, input));
    let kept = match kept {
        Ok(()) => format!("It is kept as {} and runs first from now on.", path.display()),
        Err(error) => format!("It could not be kept as {}: {error}", path.display()),
    };
    format!(
        "{reason}\n  target {}, seed {seed}, input b\"{}\"\n  {kept}",
        target.name,
        input.escape_ascii()
    )
}

/// The input under way and its number, for the one that waits.
type Current = Arc<Mutex<(u64, Vec<u8>)>>;

/// What a run begins with that names no seed: the same each time in `make test`, so that a change
/// is judged by what it changes; any in `make fuzz`.
fn default_seed() -> u64 {
    if variable::<f64>("FUZZ_SECONDS").is_some() { rand::rng().random() } else { 0x5e5e }
}

/// Runs `target` for its time.
pub(crate) fn run(target: &'static Target) {
    quiet_panics();
    let seed = variable("FUZZ_SEED").unwrap_or_else(default_seed);
    let time = Duration::from_secs_f64(variable("FUZZ_SECONDS").unwrap_or(SECONDS));
    let current = Current::default();
    let (done, end) = mpsc::channel();
    let work = Arc::clone(&current);
    let thread = std::thread::spawn(move || {
        QUIET.set(true);
        let _ = done.send(inputs(target, seed, time, &work));
    });
    let mut seen = u64::MAX;
    let result = loop {
        match end.recv_timeout(SLOW) {
            Ok(result) => break result,
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the engine itself has failed"),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let (number, input) = current.lock().unwrap().clone();
                assert!(number != seen, "{}", keep(target, &input, seed, "an input does not end"));
                seen = number;
            }
        }
    };
    thread.join().unwrap();
    match result {
        Ok(told) => eprintln!("{told}"),
        Err(failure) => panic!("{failure}"),
    }
}

fn inputs(target: &Target, seed: u64, time: Duration, current: &Current) -> Result<String, String> {
    let corpus = corpus(target.name);
    for (name, input) in &corpus {
        *current.lock().unwrap() = (0, input.clone());
        outcome(target, input)
            .map_err(|reason| format!("{reason}\n  target {}, corpus file {name}", target.name))?;
    }
    let mut rng = StdRng::seed_from_u64(seed ^ hash(target.name.as_bytes()));
    let (begun, mut count, mut taken) = (Instant::now(), 0, 0);
    while begun.elapsed() < time {
        // The clock is read for each hundred only.
        for _ in 0..100 {
            let input = input(target, &corpus, &mut rng);
            count += 1;
            *current.lock().unwrap() = (count, input.clone());
            match outcome(target, &input) {
                Ok(true) => taken += 1,
                Ok(false) => {}
                Err(_) => {
                    let input = shrink(target, input);
                    let reason = outcome(target, &input).err().unwrap_or_default();
                    return Err(keep(target, &input, seed, &reason));
                }
            }
        }
    }
    if taken * 20 < count {
        return Err(format!("{}: {taken} of {count} inputs were taken, seed {seed}", target.name));
    }
    Ok(format!(
        "fuzz {}: seed {seed}, {} of the corpus and {count} new inputs, {taken} of them taken",
        target.name,
        corpus.len()
    ))
}

fn input(target: &Target, corpus: &[(String, Vec<u8>)], rng: &mut StdRng) -> Vec<u8> {
    let mut input = match rng.random_range(0..10) {
        0 => {
            let length = *LENGTHS.choose(rng).unwrap();
            let length = rng.random_range(0..=length.min(300));
            return (0..length).map(|_| rng.random()).collect();
        }
        1..=3 => return (target.valid)(rng),
        4..=5 if !corpus.is_empty() => corpus.choose(rng).unwrap().1.clone(),
        _ => (target.valid)(rng),
    };
    for _ in 0..rng.random_range(1..=6) {
        mutate(target, &mut input, rng);
        input.truncate(LONGEST);
    }
    input
}

/// A place in `input`, and one that is not before it.
fn range(input: &[u8], rng: &mut StdRng) -> (usize, usize) {
    let from = rng.random_range(0..=input.len());
    (from, rng.random_range(from..=input.len().min(from + 24)))
}

fn mutate(target: &Target, input: &mut Vec<u8>, rng: &mut StdRng) {
    let (from, to) = range(input, rng);
    let word = |rng: &mut StdRng| target.words.choose(rng).map_or(&b""[..], |word| word.as_bytes());
    match rng.random_range(0..11) {
        0 if from < input.len() => input[from] ^= 1 << rng.random_range(0..8),
        1 if from < input.len() => input[from] = rng.random(),
        // The letters' other case.
        2 if from < input.len() => input[from] ^= 0x20,
        3 => input.insert(from, rng.random()),
        4 => drop(input.drain(from..to)),
        5 => {
            let piece = input[from..to].to_vec();
            let at = rng.random_range(0..=input.len());
            input.splice(at..at, piece);
        }
        6 => drop(input.splice(from..from, word(rng).iter().copied())),
        7 => drop(input.splice(from..to, word(rng).iter().copied())),
        8 => number(input, from, rng),
        9 => {
            let times = *LENGTHS.choose(rng).unwrap() / (to - from).max(1);
            let piece = input[from..to].repeat(times);
            input.splice(from..to, piece);
        }
        _ => {
            let other = (target.valid)(rng);
            let (begin, end) = range(&other, rng);
            input.splice(from..to, other[begin..end].iter().copied());
        }
    }
}

/// Puts an extreme number in the place of the next one.
fn number(input: &mut Vec<u8>, from: usize, rng: &mut StdRng) {
    let Some(begin) = input[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else {
        return;
    };
    let end = input[begin..].iter().position(|b| !b.is_ascii_digit());
    let end = end.map_or(input.len(), |at| begin + at);
    let number = NUMBERS.choose(rng).unwrap();
    input.splice(begin..end, number.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails for three of all inputs' bytes in this order.
    const NEEDLE: Target = Target {
        name: "none",
        check: |input| {
            let text = String::from_utf8_lossy(input);
            assert!(!(text.contains("a1") && text.contains('z')), "found");
            true
        },
        valid: |_| b"a2.q".to_vec(),
        words: &["z"],
    };

    #[test]
    fn a_failing_input_is_found_and_made_small() {
        let mut rng = StdRng::seed_from_u64(1);
        let found = (0..100_000)
            .map(|_| input(&NEEDLE, &[], &mut rng))
            .find(|input| catch_unwind(|| (NEEDLE.check)(input)).is_err())
            .expect("two mutations are enough");
        QUIET.set(true);
        let mut small = shrink(&NEEDLE, found);
        small.sort_unstable();
        assert_eq!(small, b"1az");
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let of = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..100).map(|_| input(&NEEDLE, &[], &mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }
}
