//! Fuzzing: whatever is stored or received, damaged, cut, spliced or made up, is refused or is something valid.
//!
//! # What must hold of every input
//!
//! - Nothing panics, and nothing takes longer than [`CASE_MAX`].
//! - No more memory is taken than the format's own bound says ([`Bound`]), whatever lengths the input claims.
//! - What decodes is encoded again to something that decodes to the same.
//! - Where there is a checksum, a signature or a hash, every single flipped bit is refused.
//!
//! # Why it is made like this
//!
//! Plain property tests, which need neither nightly Rust nor another tool and run in every normal run. Inputs begin with
//! what the program itself has made ([`mangled`]), so that they get past the first bytes; without feedback from coverage
//! that is what counts. A case that fails is made smaller, and told in hexadecimal. What is found becomes a test beside
//! the decoder.
//!
//! `STRONGROOM_FUZZ_CASES` is how many times as many inputs there are as in a normal run; see `tests/README.md`.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod edges;
mod files;
mod formats;
mod mangled;
#[path = "../common/rows.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod rows;
#[path = "../storage/sample.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod sample;
#[path = "../storage/support.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod support;
mod texts;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use mangled::mangled;

/// Longest one input may take. Far more than any needs; what loops takes longer.
const CASE_MAX: Duration = Duration::from_secs(10);

/// What an input may cost: so many bytes at once at most, and so many more for each byte of the input.
#[derive(Debug, Clone, Copy)]
struct Bound {
    bytes: u64,
    per_byte: u64,
}

/// Of what is small however it is read: an id, a row, a line.
const SMALL: Bound = Bound { bytes: 256 * 1024, per_byte: 64 };

/// How many times as many inputs there are as in a normal run.
fn times() -> u32 {
    std::env::var("STRONGROOM_FUZZ_CASES").map_or(1, |times| times.parse().expect("a number"))
}

/// Has `check` look at `cases` damaged `samples`, and more if that is asked for. Says what fails, and with which input.
#[track_caller]
fn fuzz(what: &str, cases: u32, bound: Bound, samples: Vec<Vec<u8>>, check: impl Fn(&[u8])) {
    samples
        .iter()
        .for_each(|sample| bounded(bound, sample, &check).unwrap_or_else(|why| panic!("{what}: {why}")));
    let config = Config {
        cases: 4 * cases * times(),
        failure_persistence: None,
        max_shrink_iters: 500,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let run = runner.run(&mangled(samples), |input| {
        bounded(bound, &input, &check).map_err(|why| {
            TestCaseError::fail(format!("{why}, with {}", data_encoding::HEXLOWER.encode(&input)))
        })
    });
    match run {
        Ok(()) => {}
        Err(TestError::Fail(why, _)) => panic!("{what}: {why}"),
        Err(TestError::Abort(why)) => panic!("{what}: given up, {why}"),
    }
}

/// Runs `check` on one input within its bounds of time and memory.
fn bounded(bound: Bound, input: &[u8], check: impl Fn(&[u8])) -> Result<(), String> {
    let began = Instant::now();
    let mut ended = Ok(());
    // A panic must not get past what measures.
    let taken = allocation_counter::measure(|| ended = catch_unwind(AssertUnwindSafe(|| check(input))));
    if let Err(panic) = ended {
        let said =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        return match said {
            Some(said) => Err(format!("panicked: {said}")),
            None => resume_unwind(panic),
        };
    }
    let most = bound.bytes + bound.per_byte * input.len() as u64;
    if taken.bytes_max > most {
        return Err(format!("{} bytes of memory for {} of input", taken.bytes_max, input.len()));
    }
    if began.elapsed() > CASE_MAX {
        return Err(format!("it took {} s", began.elapsed().as_secs()));
    }
    Ok(())
}

/// Every way to flip one bit.
fn flipped(whole: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..whole.len() * 8).map(|bit| {
        let mut damaged = whole.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        (bit, damaged)
    })
}
