//! The journal of reveals that were decided without a quorum: on the disk before anything is shown, until they are on
//! record.
//!
//! ```text
//! <data>/journal/own    what this node decided, chained, in order
//! <data>/journal/told   what other nodes decided and told this one
//! ```
//!
//! Each is a small file that is replaced as a whole, in one step: written under another name, fsynced, renamed, the
//! directory fsynced. So there is no torn tail to be told from damage: after a crash at any point the file holds every
//! entry that was ever acknowledged, and what a crash left under the other name was never acknowledged and is dropped.
//! A file ends in the SHA-256 of what stands before it, and the entries of a node lead from hash to hash to the head that
//! is kept with them, so that one which is altered, cut or put together of parts is found. Then the journal takes nothing
//! until somebody has looked at it: a node that may have lost a reveal shows no further one. What is in the other file is
//! told and put on record all the same.
//!
//! A disk that is put back to an older copy brings an older journal back, which would number what it takes next as it
//! numbered what it has forgotten. Entries are told apart by their hashes, so nothing is lost by that; and once it is
//! noticed, another journal is begun ([`Journal::begin_anew`]), so that a place names one entry again.
//!
//! Writing a whole file for each entry costs some milliseconds at its bound; degraded reveals are asked for by people.

mod told;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::told::Told;
use super::directory::{create_dir, sync_dir, write_durably};
use super::{StoreError, format};
use crate::escrow::audit::ChainHead;
use crate::escrow::ids::{NodeId, Timestamp};
use crate::escrow::journal::alone::Waiting;
use crate::escrow::journal::{JournalEntry, JournalPlace, Noted};
use crate::mutation::Mutation;

/// Most entries of this node that wait to be put on record.
pub const OWN_ENTRIES_MAX: usize = 4_096;
/// Most of them that are denials: whoever is denied over and over keeps nobody else from a key.
pub const OWN_DENIALS_MAX: usize = OWN_ENTRIES_MAX / 2;
/// Most of them that ask for an approval. Each takes three entries at most, itself, the grant and the reveal: there is
/// room for all of them beside the denials.
pub const OWN_ASKS_MAX: usize = OWN_ENTRIES_MAX / 8;
/// Most entries of other nodes that are kept for them. Whoever tells them has at most half of what the others leave, so that
/// one which tells without end keeps nobody from being heard.
pub const TOLD_ENTRIES_MAX: usize = 16_384;
/// Largest file: entries of two thirds of the longest reason and names.
pub const FILE_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of the hash at the end of a file.
const SUM_BYTES: usize = 32;

const OWN_FILE: &str = "own";
const TOLD_FILE: &str = "told";

/// Why the journal takes nothing, or not this.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// What is on the disk is not what was written there. It is left as it is.
    #[error("the journal of reveals is damaged and takes nothing: {0}")]
    Damaged(String),
    /// It has reached one of its bounds.
    #[error("the journal of reveals is full: {limit} {what} wait to be put on record, which needs a quorum")]
    Full {
        /// Entries, denials, requests for approval or bytes.
        what: &'static str,
        /// How many fit.
        limit: usize,
    },
    /// The disk does not take it. Nothing was written that counts.
    #[error("the journal of reveals cannot be written: {0}")]
    Store(#[from] StoreError),
}

/// How full the journal is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Entries of this node that are not on record.
    pub own: usize,
    /// Entries of others that are not on record as far as this node knows.
    pub told: usize,
    /// Bytes of both files.
    pub bytes: usize,
    /// When the oldest of them was decided.
    pub oldest: Option<Timestamp>,
    /// Why it takes nothing, if so; empty if it does.
    pub fault: String,
    /// It was begun since this process started, in place of one that was put back to an older copy.
    pub begun_anew: bool,
}

/// What is in the file of this node's own entries.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Own {
    journal: Uuid,
    /// The newest entry there ever was.
    head: ChainHead,
    /// In order, without gaps, up to the head.
    entries: Vec<JournalEntry>,
}

impl Own {
    fn begin() -> Self {
        Self { journal: Uuid::new_v4(), head: ChainHead::default(), entries: Vec::new() }
    }
}

/// The journal of a node. Clones share it. What changes it blocks on the disk; what looks at it does not.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Held by who changes it, the disk's time included.
    writing: Mutex<()>,
    /// As it is on the disk. Held for a moment only, so that a disk that hangs holds up nobody who looks.
    state: Mutex<Arc<State>>,
}

#[derive(Debug, Clone)]
struct State {
    own: Own,
    told: Told,
    /// Bytes of each file.
    bytes: (usize, usize),
    /// What is wrong with each file.
    own_fault: Option<String>,
    told_fault: Option<String>,
    begun_anew: bool,
}

impl Journal {
    /// Opens the journal in `directory`, or makes one. A damaged one opens as well, and takes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory cannot be made; [`StoreError::Newer`] if a newer release wrote it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        create_dir(directory).map_err(|error| StoreError::io("creating", directory, error))?;
        for name in [OWN_FILE, TOLD_FILE] {
            drop_unfinished(&directory.join(name))?;
        }
        let path = directory.join(OWN_FILE);
        let own = read::<Own>(&path)?.and_then(|(own, bytes)| {
            let chain = own.as_ref().map_or(Ok(()), check_chain);
            chain.map_err(|broken| format!("{}: {broken}", path.display())).map(|()| (own, bytes))
        });
        let path = directory.join(TOLD_FILE);
        let told = read::<Told>(&path)?.and_then(|(told, bytes)| {
            let each = told.as_ref().map_or(Ok(()), Told::check);
            each.map_err(|broken| format!("{}: {broken}", path.display())).map(|()| (told, bytes))
        });
        let (own_fault, told_fault) = (own.as_ref().err().cloned(), told.as_ref().err().cloned());
        for fault in [&own_fault, &told_fault].into_iter().flatten() {
            tracing::error!(
                fault,
                "the journal of reveals is damaged: without a quorum no key is shown here"
            );
        }
        let (own, own_bytes) = own.unwrap_or_default();
        let (told, told_bytes) = told.unwrap_or_default();
        let state = State {
            own: own.unwrap_or_else(Own::begin),
            told: told.unwrap_or_default(),
            bytes: (own_bytes, told_bytes),
            own_fault,
            told_fault,
            begun_anew: false,
        };
        let waiting = state.own.entries.len();
        if waiting > 0 {
            tracing::warn!(waiting, "reveals in the journal of this node are not on record yet");
        }
        let (directory, state) = (directory.to_owned(), Mutex::new(Arc::new(state)));
        Ok(Self(Arc::new(Inner { directory, writing: Mutex::default(), state })))
    }

    /// Has `decide` look at all that waits, and puts what it decides behind this node's entries. Durable
    /// when this returns. Nobody else decides meanwhile, so that two requests cannot both take what is left of a limit.
    ///
    /// # Errors
    /// What `decide` failed with; [`JournalError`]: then nothing may be shown.
    pub fn append<T, E: From<JournalError>>(
        &self,
        decide: impl FnOnce(&Waiting<'_>) -> Result<Decided<T>, E>,
    ) -> Result<Appended<T>, E> {
        let _turn = self.turn();
        let state = self.look();
        state.check_whole()?;
        let what = match decide(&Waiting { own: &state.own.entries, told: &state.told.entries })? {
            Decided::Nothing(instead) => return Ok(Appended::Nothing(instead)),
            Decided::Entry(what) => *what,
        };
        Ok(self.put(&state, what).map(|entry| Appended::Entry(Box::new(entry)))?)
    }

    fn put(&self, state: &State, what: Noted) -> Result<JournalEntry, JournalError> {
        let is_ask = |what: &Noted| matches!(what, Noted::ApprovalAsked(_));
        let waiting = |counts: &dyn Fn(&Noted) -> bool| {
            state.own.entries.iter().filter(|entry| counts(&entry.what)).count()
        };
        if waiting(&|_| true) >= OWN_ENTRIES_MAX {
            return Err(JournalError::Full { what: "entries", limit: OWN_ENTRIES_MAX });
        }
        if what.is_denial() && waiting(&Noted::is_denial) >= OWN_DENIALS_MAX {
            return Err(JournalError::Full { what: "denials", limit: OWN_DENIALS_MAX });
        }
        if is_ask(&what) && waiting(&is_ask) >= OWN_ASKS_MAX {
            return Err(JournalError::Full { what: "requests for approval", limit: OWN_ASKS_MAX });
        }
        let Own { journal, head, .. } = state.own;
        let place = JournalPlace { journal, sequence: head.sequence + 1 };
        let entry = JournalEntry { place, previous: head.hash, what };
        let mut next = state.clone();
        let own = &mut next.own;
        own.head = ChainHead { sequence: place.sequence, hash: entry.hash() };
        own.entries.push(entry.clone());
        if !Mutation::JournalAfterShowing.is_active() {
            next.bytes.0 = self.write(OWN_FILE, own)?;
        }
        // Only now: what is not on the disk is not in the journal.
        self.set(next);
        Ok(entry)
    }

    /// Keeps what another node tells, but for what is here already; answers how much that is. Durable when this returns.
    ///
    /// # Errors
    /// [`JournalError`]: then nothing of it is kept that was not before.
    pub fn keep(&self, teller: NodeId, entries: Vec<JournalEntry>) -> Result<usize, JournalError> {
        let _turn = self.turn();
        let state = self.look();
        whole(&state.told_fault)?;
        let mut next = State::clone(&state);
        let told = &mut next.told;
        for entry in entries {
            if !told.entries.contains(&entry) && !state.own.entries.contains(&entry) {
                told.push(teller, entry);
            }
        }
        let new = told.entries.len() - state.told.entries.len();
        if new > 0 {
            told.check_part_of(teller)?;
            next.bytes.1 = self.write(TOLD_FILE, told)?;
            self.set(next);
        }
        Ok(new)
    }

    /// Drops what is on record: of this node's entries the first ones, up to the first that is not; of others' any. A file
    /// that is damaged is left as it is.
    ///
    /// # Errors
    /// [`JournalError`]: then they stay, and are dropped the next time.
    pub fn forget(&self, is_on_record: impl Fn(&JournalEntry) -> bool) -> Result<(), JournalError> {
        let _turn = self.turn();
        let state = self.look();
        // What is in a damaged one is not known, and so not here.
        let mut next = State::clone(&state);
        let done = state.own.entries.iter().take_while(|entry| is_on_record(entry)).count();
        if done > 0 {
            next.own.entries.drain(..done);
            next.bytes.0 = self.write(OWN_FILE, &next.own)?;
            self.set(next.clone());
        }
        next.told.retain(|entry| !is_on_record(entry));
        if next.told.entries.len() < state.told.entries.len() {
            next.bytes.1 = self.write(TOLD_FILE, &next.told)?;
            self.set(next);
        }
        Ok(())
    }

    /// Begins another journal if nothing of this node waits in the one it has; says whether it did.
    ///
    /// # Errors
    /// [`JournalError`]: then the old one goes on.
    pub fn begin_anew(&self) -> Result<bool, JournalError> {
        let _turn = self.turn();
        let state = self.look();
        whole(&state.own_fault)?;
        if !state.own.entries.is_empty() {
            return Ok(false);
        }
        let mut next = State { own: Own::begin(), begun_anew: true, ..State::clone(&state) };
        next.bytes.0 = self.write(OWN_FILE, &next.own)?;
        self.set(next);
        Ok(true)
    }

    /// The place of the newest entry that this journal ever took; number 0 if it took none.
    pub fn last(&self) -> JournalPlace {
        let Own { journal, head, .. } = self.look().own;
        JournalPlace { journal, sequence: head.sequence }
    }

    /// This node's entries, in order.
    pub fn own(&self) -> Vec<JournalEntry> {
        self.look().own.entries.clone()
    }

    /// What other nodes told this one.
    pub fn told(&self) -> Vec<JournalEntry> {
        self.look().told.entries.clone()
    }

    /// At most `most` of what other nodes told, of each that told as much as of the others; only what is `due`.
    pub fn told_in_turns(&self, most: usize, due: impl Fn(&JournalEntry) -> bool) -> Vec<JournalEntry> {
        self.look().told.in_turns(most, due)
    }

    /// Whether nothing waits to be put on record.
    pub fn is_empty(&self) -> bool {
        let state = self.look();
        state.own.entries.is_empty() && state.told.entries.is_empty()
    }

    /// How full it is.
    pub fn stats(&self) -> JournalStats {
        let state = self.look();
        let all = state.own.entries.iter().chain(&state.told.entries);
        JournalStats {
            own: state.own.entries.len(),
            told: state.told.entries.len(),
            bytes: state.bytes.0 + state.bytes.1,
            oldest: all.map(|entry| entry.what.at()).min(),
            fault: state.faults().cloned().collect::<Vec<_>>().join("; "),
            begun_anew: state.begun_anew,
        }
    }

    /// The right to change it. Nothing but the disk is half-changed if it is lost, and that is replaced in one step.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Arc<State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> Result<usize, JournalError> {
        let mut bytes = format::encode(content);
        bytes.extend_from_slice(digest(&SHA256, &bytes).as_ref());
        if bytes.len() > FILE_MAX_BYTES {
            return Err(JournalError::Full { what: "bytes", limit: FILE_MAX_BYTES });
        }
        let path = self.0.directory.join(name);
        write_durably(&path, &bytes).map_err(|error| StoreError::io("writing", &path, error))?;
        Ok(bytes.len())
    }
}

/// What came of looking at what waits.
#[derive(Debug)]
pub enum Decided<T> {
    /// Nothing to be written.
    Nothing(T),
    /// To be written.
    Entry(Box<Noted>),
}

/// What became of it.
#[derive(Debug)]
pub enum Appended<T> {
    /// Nothing was written.
    Nothing(T),
    /// It is in the journal, durably.
    Entry(Box<JournalEntry>),
}

impl State {
    fn faults(&self) -> impl Iterator<Item = &String> {
        self.own_fault.iter().chain(&self.told_fault)
    }

    /// Limits count what is in both.
    fn check_whole(&self) -> Result<(), JournalError> {
        whole(&self.own_fault)?;
        whole(&self.told_fault)
    }
}

fn whole(fault: &Option<String>) -> Result<(), JournalError> {
    fault.as_ref().map_or(Ok(()), |fault| Err(JournalError::Damaged(fault.clone())))
}

/// A file's content and size, or what is wrong with it.
type Content<T> = Result<(Option<T>, usize), String>;

fn read<T: DeserializeOwned>(path: &Path) -> Result<Content<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok((None, 0))),
        Err(error) => return Ok(Err(format!("reading {}: {error}", path.display()))),
    };
    let wrong = |what: String| Ok(Err(format!("{} {what}", path.display())));
    let Some((body, sum)) = bytes.split_last_chunk::<SUM_BYTES>() else {
        return wrong("is cut short".to_owned());
    };
    if digest(&SHA256, body).as_ref() != sum {
        return wrong("is not what was written there: its hash does not fit".to_owned());
    }
    match format::decode(body) {
        Ok(content) => Ok(Ok((Some(content), bytes.len()))),
        Err(format::FormatError::Newer { found }) => {
            Err(StoreError::newer(path, "is a journal of reveals", found))
        }
        Err(error) => wrong(format!("cannot be understood: {error}")),
    }
}

/// The entries must lead from one to the next, and to the head.
fn check_chain(own: &Own) -> Result<(), String> {
    let mut previous: Option<(JournalPlace, [u8; 32])> = None;
    for entry in &own.entries {
        let follows = previous
            .is_none_or(|(place, hash)| entry.place.sequence == place.sequence + 1 && entry.previous == hash);
        if !follows || entry.place.journal != own.journal {
            return Err(format!("entry {} does not follow the one before it", entry.place));
        }
        previous = Some((entry.place, entry.hash()));
    }
    match previous {
        Some((place, hash)) if (place.sequence, hash) != (own.head.sequence, own.head.hash) => {
            Err(format!("it ends with entry {place}, and {} were written", own.head.sequence))
        }
        _ => Ok(()),
    }
}

/// What a crash left of a file that was being written. It was never acknowledged.
fn drop_unfinished(path: &Path) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    match fs::remove_file(temporary) {
        Ok(()) => temporary
            .parent()
            .map_or(Ok(()), sync_dir)
            .map_err(|error| StoreError::io("removing", temporary, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("removing", temporary, error)),
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
