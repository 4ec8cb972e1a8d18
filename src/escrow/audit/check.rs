//! Checking an export line by line: does it hold the trail as the nodes signed it, and if not, where does it first
//! depart from it, and how?
//!
//! The chain alone shows damage. Against somebody who writes the chain anew only the checkpoints help: what a node
//! has signed about the head of the chain speaks for every record up to there.
//!
//! What does not fit is seen at once; what was done is mostly seen only in what follows. So at the first line that does
//! not fit the check begins to look for what belongs there, and decides at the end. Nothing of the trail is kept.

use std::collections::VecDeque;
use std::fmt;

use super::ChainHead;
use super::line::{StatedRecord, parse};
use crate::escrow::ids::{Invalid, NodeId};

/// What was done to an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tampering {
    /// A record is not what it was.
    Altered,
    /// Records are missing between others.
    Deleted,
    /// Something stands there that is no record of the trail.
    Inserted,
    /// Records stand in another order.
    Reordered,
    /// The last records are missing.
    Truncated,
    /// No node has signed for it.
    Unsigned,
}

impl Tampering {
    /// Its name for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Deleted => "deleted",
            Self::Inserted => "inserted",
            Self::Reordered => "reordered",
            Self::Truncated => "truncated",
            Self::Unsigned => "unsigned",
        }
    }
}

impl fmt::Display for Tampering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The first place that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {sequence}: {kind}: {why}")]
pub struct Fault {
    /// The record that belongs there.
    pub sequence: u64,
    /// What was done.
    pub kind: Tampering,
    /// How that shows, in words.
    pub why: String,
    /// The line that does not fit, from 1, as they were given; `None` if it is the end.
    pub line: Option<u64>,
}

/// What a node has signed: the trail up to here is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// The head of the chain.
    pub head: ChainHead,
    /// Who.
    pub node: NodeId,
}

/// What is asked of the records.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// They begin after this record; 0 for the whole trail.
    pub after: u64,
    /// The hash of that record, where it is known.
    pub after_hash: Option<[u8; 32]>,
    /// What nodes have signed, their signatures found good.
    pub signed: Vec<Signed>,
    /// Every record must be signed for.
    pub all_signed: bool,
    /// The trail reaches at least to this record; 0 if that is not known.
    pub reaches: u64,
}

/// What was found good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// How many records.
    pub records: u64,
    /// The first and the last one are above and at this; equal if there are none.
    pub after: u64,
    /// The last record.
    pub head: ChainHead,
    /// Up to where nodes have signed; `None` if no node has.
    pub signed_to: Option<u64>,
}

/// The check of one trail, or a part of it.
#[derive(Debug)]
pub struct Checker {
    expected: Expectation,
    /// Still to be met, the next one in front.
    signed: VecDeque<Signed>,
    after: u64,
    sequence: u64,
    /// Of the record `sequence`; unknown only before the first record of a part.
    hash: Option<[u8; 32]>,
    signed_to: Option<u64>,
    lines: u64,
    readable: u64,
    trouble: Trouble,
}

#[derive(Debug)]
enum Trouble {
    None,
    /// To be told apart by what follows.
    Suspected(Suspicion),
    Found(Fault),
}

/// A line that stands where another one belongs.
#[derive(Debug)]
struct Suspicion {
    found: Found,
    line: u64,
    /// What belongs there was met later.
    met: bool,
    /// The line was met again, where it belongs.
    met_again: bool,
    /// Something else goes on from it, or a node has signed it.
    followed: bool,
}

#[derive(Debug)]
enum Found {
    /// A record that is not what its hash says, or no record at all.
    Damaged(String),
    /// A good record from further on.
    Later { sequence: u64, hash: [u8; 32] },
    /// A good record of the right number that does not follow the one before it.
    Unconnected { hash: [u8; 32] },
}

impl Checker {
    /// Begins.
    pub fn new(mut expected: Expectation) -> Self {
        let mut signed = std::mem::take(&mut expected.signed);
        signed.sort_by_key(|one| one.head.sequence);
        let after = expected.after;
        // Whoever signed the record before the first one says what the first one must follow.
        let at_start = signed.iter().find(|one| one.head.sequence == after).map(|one| one.head.hash);
        let hash = if after == 0 { Some([0; 32]) } else { expected.after_hash.or(at_start) };
        let mut checker = Self {
            expected,
            signed: signed.into_iter().filter(|one| one.head.sequence >= after).collect(),
            after,
            sequence: after,
            hash,
            signed_to: None,
            lines: 0,
            readable: 0,
            trouble: Trouble::None,
        };
        checker.meet_signed();
        checker
    }

    /// The next record's line, without its line end.
    pub fn line(&mut self, text: &str) {
        self.lines += 1;
        let stated = parse(text);
        if stated.is_ok() {
            self.readable += 1;
        }
        match &mut self.trouble {
            Trouble::None => self.judge(stated),
            Trouble::Suspected(suspicion) => {
                if let Ok(stated) = stated
                    && stated.genuine
                {
                    suspicion.look_at(&stated, self.sequence, self.hash);
                }
            }
            Trouble::Found(_) => {}
        }
    }

    /// A line that is no record and stands for none, so that later ones keep their numbers.
    pub fn skip(&mut self) {
        self.lines += 1;
    }

    /// How many lines were records, good or not.
    pub fn readable(&self) -> u64 {
        self.readable
    }

    /// The last record that is good so far.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether something was met that does not fit. What it is, [`Checker::finish`] says.
    pub fn is_in_trouble(&self) -> bool {
        !matches!(self.trouble, Trouble::None)
    }

    /// Judges what was given, once all of it was.
    ///
    /// # Errors
    /// [`Fault`] at the first record that does not fit.
    pub fn finish(self) -> Result<Checked, Fault> {
        let at_end = |sequence, kind, why| Fault { sequence, kind, why, line: None };
        match self.trouble {
            Trouble::Found(fault) => return Err(fault),
            Trouble::Suspected(suspicion) => {
                return Err(suspicion.decide(self.sequence, self.after, self.signed_to));
            }
            Trouble::None => {}
        }
        let next = self.sequence + 1;
        if let Some(Signed { head, node }) = self.signed.back() {
            let why = format!(
                "the records end before it, but node {node} has signed up to record {}",
                head.sequence
            );
            return Err(at_end(next, Tampering::Truncated, why));
        }
        if self.sequence < self.expected.reaches {
            let why = format!("the records end before it, but should reach record {}", self.expected.reaches);
            return Err(at_end(next, Tampering::Truncated, why));
        }
        if self.expected.all_signed && self.signed_to != Some(self.sequence) {
            let fault = match self.signed_to {
                Some(signed) => at_end(
                    signed + 1,
                    Tampering::Inserted,
                    format!("no node has signed for what stands behind record {signed}"),
                ),
                None => at_end(
                    self.after + 1,
                    Tampering::Unsigned,
                    "no node has signed for these records: the checkpoints are missing".to_owned(),
                ),
            };
            return Err(fault);
        }
        Ok(Checked {
            records: self.sequence - self.after,
            after: self.after,
            head: ChainHead { sequence: self.sequence, hash: self.hash.unwrap_or_default() },
            signed_to: self.signed_to,
        })
    }

    fn judge(&mut self, stated: Result<StatedRecord, Invalid>) {
        let StatedRecord { record, hash, genuine } = match stated {
            Ok(stated) => stated,
            Err(invalid) => {
                return self.suspect(Found::Damaged(format!("its line is not a record: {invalid}")));
            }
        };
        if !genuine {
            return self.suspect(Found::Damaged("its hash is not that of what it says".to_owned()));
        }
        let (sequence, next) = (record.sequence, self.sequence + 1);
        if sequence > next {
            self.suspect(Found::Later { sequence, hash });
        } else if sequence == self.sequence {
            self.fault(sequence, Tampering::Inserted, format!("two records are numbered {sequence}"));
        } else if sequence < next {
            self.fault(next, Tampering::Inserted, format!("record {sequence} stands in its place"));
        } else if self.hash.is_some_and(|before| before != record.previous) {
            self.suspect(Found::Unconnected { hash });
        } else {
            (self.sequence, self.hash) = (sequence, Some(hash));
            self.meet_signed();
        }
    }

    /// Compares the record that was just found good with what nodes have signed about it.
    fn meet_signed(&mut self) {
        while let Some(Signed { head, node }) =
            self.signed.front().copied().filter(|signed| signed.head.sequence == self.sequence)
        {
            self.signed.pop_front();
            if self.hash != Some(head.hash) {
                let from = match self.signed_to {
                    Some(signed) => format!("; records up to {signed} are as signed"),
                    None => String::new(),
                };
                let why = format!("it is not what node {node} has signed{from}");
                return self.fault(head.sequence, Tampering::Altered, why);
            }
            self.signed_to = Some(head.sequence);
        }
    }

    fn suspect(&mut self, found: Found) {
        // Signed for, it is good, and what it follows was signed for with it.
        let followed = match (&found, self.signed.front()) {
            (Found::Unconnected { hash }, Some(Signed { head, .. })) => {
                *head == ChainHead { sequence: self.sequence + 1, hash: *hash }
            }
            _ => false,
        };
        let line = self.lines;
        self.trouble = Trouble::Suspected(Suspicion { found, line, met: false, met_again: false, followed });
    }

    fn fault(&mut self, sequence: u64, kind: Tampering, why: String) {
        self.trouble = Trouble::Found(Fault { sequence, kind, why, line: Some(self.lines) });
    }
}

impl Suspicion {
    /// Looks at a good record that comes later. The last one that fitted is `before`, with its hash.
    fn look_at(&mut self, later: &StatedRecord, before: u64, before_hash: Option<[u8; 32]>) {
        let follows = before_hash.is_none_or(|hash| hash == later.record.previous);
        self.met |= later.record.sequence == before + 1 && follows;
        match self.found {
            Found::Damaged(_) => {}
            Found::Later { hash, .. } => self.met_again |= later.hash == hash,
            Found::Unconnected { hash } => self.followed |= later.record.previous == hash,
        }
    }

    /// The last record that fitted is `before`; nodes have signed up to `signed_to`.
    fn decide(self, before: u64, after: u64, signed_to: Option<u64>) -> Fault {
        let next = before + 1;
        let (sequence, kind, why) = match self.found {
            Found::Damaged(why) if self.met => (
                next,
                Tampering::Inserted,
                format!("a line stands before it that does not belong there: {why}"),
            ),
            Found::Damaged(why) => (next, Tampering::Altered, why),
            Found::Later { sequence, .. } if self.met && self.met_again => {
                (next, Tampering::Inserted, format!("a copy of record {sequence} stands before it"))
            }
            Found::Later { sequence, .. } if self.met => (
                next,
                Tampering::Reordered,
                format!("record {sequence} stands in its place, and it stands further on"),
            ),
            Found::Later { sequence, .. } => {
                let range = if sequence - next > 1 {
                    format!("{next} to {}", sequence - 1)
                } else {
                    next.to_string()
                };
                (next, Tampering::Deleted, format!("missing: {range}; record {sequence} stands there"))
            }
            Found::Unconnected { .. } if self.met => (
                next,
                Tampering::Inserted,
                format!("a record stands before it that does not follow record {before}"),
            ),
            // The rest of the trail goes on from it: then it is the one before that was changed, hash and all. Unless
            // nodes have signed that one.
            Found::Unconnected { .. } if self.followed && before > after && signed_to != Some(before) => {
                (before, Tampering::Altered, format!("it is not the record that record {next} follows"))
            }
            Found::Unconnected { .. } if before == 0 => {
                (next, Tampering::Altered, "it does not begin the chain".to_owned())
            }
            Found::Unconnected { .. } => {
                (next, Tampering::Altered, format!("it does not follow record {before} as that one stands"))
            }
        };
        Fault { sequence, kind, why, line: Some(self.line) }
    }
}

#[cfg(test)]
mod tests;
