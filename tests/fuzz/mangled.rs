//! Inputs: samples that the program itself has made, damaged in a few places, and noise.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Most bytes of noise, and of what is put in between.
const NOISE_MAX_BYTES: usize = 96;
/// Most things that are done to one sample.
const CHANGES_MAX: usize = 4;

/// One thing that is done to a sample.
#[derive(Debug, Clone)]
enum Change {
    /// One bit is another.
    Flip(Index, u8),
    /// A byte is another: the ends of ranges of numbers more often than others.
    Set(Index, u8),
    /// All behind it is gone.
    Cut(Index),
    /// Some bytes are gone.
    Remove(Index, usize),
    /// Some bytes come once more.
    Repeat(Index, usize),
    /// Something comes in between.
    Insert(Index, Vec<u8>),
    /// A number of four bytes is there, small or large, little or big endian.
    Number(Index, u32, bool),
    /// From there on it is another sample.
    Splice(Index, Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = prop_oneof![3 => prop::sample::select(vec![0, 1, 2, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xff]), 1 => any::<u8>()];
    let number =
        prop::sample::select(vec![0, 1, 0xff, 0xffff, 0x00ff_ffff, 0x7fff_ffff, 0x8000_0000, u32::MAX]);
    prop_oneof![
        4 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        4 => (any::<Index>(), byte).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..NOISE_MAX_BYTES)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (any::<Index>(), number, any::<bool>()).prop_map(|(at, number, big)| Change::Number(at, number, big)),
        1 => any::<(Index, Index, Index)>().prop_map(|(at, other, from)| Change::Splice(at, other, from)),
    ]
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
        // A place in it or at its end.
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
        match self {
            Self::Flip(at, bit) => {
                let at = place(at, bytes);
                bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Self::Set(at, value) => {
                let at = place(at, bytes);
                bytes[at..].iter_mut().take(1).for_each(|byte| *byte = *value);
            }
            Self::Cut(at) => bytes.truncate(place(at, bytes)),
            Self::Remove(at, length) => {
                let from = place(at, bytes);
                bytes.drain(from..(from + length).min(bytes.len()));
            }
            Self::Repeat(at, length) => {
                let from = place(at, bytes);
                let end = (from + length).min(bytes.len());
                let again = bytes[from..end].to_vec();
                bytes.splice(end..end, again);
            }
            Self::Insert(at, more) => {
                let at = place(at, bytes);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Number(at, number, big) => {
                let at = place(at, bytes);
                let number = if *big { number.to_be_bytes() } else { number.to_le_bytes() };
                let end = (at + number.len()).min(bytes.len());
                bytes.splice(at..end, number);
            }
            Self::Splice(at, other, from) => {
                let other = &samples[other.index(samples.len())];
                bytes.truncate(place(at, bytes));
                bytes.extend_from_slice(&other[place(from, other)..]);
            }
        }
    }
}

/// Samples that were damaged, whole ones among them, and noise.
pub fn mangled(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    assert!(!samples.is_empty(), "a target without samples tests little");
    let damaged = (any::<Index>(), vec(change(), 0..=CHANGES_MAX)).prop_map(move |(which, changes)| {
        let mut bytes = samples[which.index(samples.len())].clone();
        changes.iter().for_each(|change| change.make(&mut bytes, &samples));
        bytes
    });
    prop_oneof![12 => damaged, 1 => vec(any::<u8>(), 0..NOISE_MAX_BYTES)]
}
