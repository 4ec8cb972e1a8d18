use std::sync::atomic::Ordering;

use raft_log::chunked_wal::{ChunkId, Config};

use super::*;

fn entry(term: u64, index: u64) -> (LogPosition, Vec<u8>) {
    (LogPosition { term, index }, format!("entry {term}/{index}").into_bytes())
}

fn small() -> LogOptions {
    LogOptions { cache_max_bytes: 1_024, chunk_max_bytes: 1_024, ..LogOptions::default() }
}

async fn append(log: &Log, entries: Vec<(LogPosition, Vec<u8>)>) -> io::Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    log.append(entries, move |result| drop(tell.send(result))).await?;
    told.await.unwrap()
}

async fn indexes(log: &Log) -> Vec<u64> {
    let entries = log.read(0, u64::MAX, usize::MAX).await.unwrap();
    entries.iter().map(|(position, _)| position.index).collect()
}

#[tokio::test]
async fn what_was_flushed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=200).map(|index| entry(1, index)).collect()).await.unwrap();
    let vote = Vote { term: 3, committed: true, node: 2 };
    log.save_vote(vote).await.unwrap();
    log.save_committed(LogPosition { term: 1, index: 150 }).await.unwrap();
    // A copy is what a crash would leave: nothing of this process's memory is in it.
    let copy = tempfile::tempdir().unwrap();
    log.sync().await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let reopened = Log::open(copy.path(), &small()).unwrap();
    assert_eq!(indexes(&reopened).await, (1..=200).collect::<Vec<_>>());
    assert_eq!(reopened.read(7, 8, 1).await.unwrap()[0].1, entry(1, 7).1);
    assert_eq!(reopened.vote().unwrap(), Some(vote));
    assert_eq!(reopened.committed().unwrap(), Some(LogPosition { term: 1, index: 150 }));
}

#[tokio::test]
async fn a_leader_of_the_same_term_replaces_another_vote_and_nothing_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    log.save_vote(Vote { term: 2, committed: false, node: 3 }).await.unwrap();
    log.save_vote(Vote { term: 2, committed: true, node: 1 }).await.unwrap();
    assert!(log.save_vote(Vote { term: 1, committed: true, node: 3 }).await.is_err());
}

#[tokio::test]
async fn a_tail_cut_short_is_dropped_and_damage_before_it_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &LogOptions::default()).unwrap();
    append(&log, vec![entry(1, 1), entry(1, 2), entry(1, 3)]).await.unwrap();
    drop(log);
    let chunk = chunks(dir.path()).remove(0);
    let bytes = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, &bytes[..bytes.len() - 5]).unwrap();
    let log = Log::open(dir.path(), &LogOptions::default()).unwrap();
    assert_eq!(indexes(&log).await, [1, 2]);
    append(&log, vec![entry(2, 3)]).await.unwrap();
    assert_eq!(indexes(&log).await, [1, 2, 3]);
    drop(log);

    let mut damaged = std::fs::read(&chunk).unwrap();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(&chunk, damaged).unwrap();
    assert!(matches!(Log::open(dir.path(), &LogOptions::default()), Err(StoreError::Log(_))));
}

fn chunks(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut chunks: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect();
    chunks.sort();
    chunks
}

#[tokio::test]
async fn a_flipped_bit_never_makes_the_log_forget() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &LogOptions::default()).unwrap();
    append(&log, vec![entry(1, 1), entry(1, 2), entry(1, 3)]).await.unwrap();
    let vote = Vote { term: 7, committed: false, node: 2 };
    log.save_vote(vote).await.unwrap();
    append(&log, vec![entry(1, 4)]).await.unwrap();
    drop(log);
    let chunk = chunks(dir.path()).remove(0);
    let whole = std::fs::read(&chunk).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&chunk, damaged).unwrap();
        // It refuses to open, or, where a bit means nothing, holds what was acknowledged.
        if let Ok(log) = Log::open(dir.path(), &LogOptions::default()) {
            assert_eq!(
                (indexes(&log).await, log.vote().unwrap()),
                (vec![1, 2, 3, 4], Some(vote)),
                "bit {bit}"
            );
        }
    }
}

#[tokio::test]
async fn a_chunk_that_was_emptied_refuses_to_open_unless_it_was_never_begun() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=100).map(|index| entry(1, index)).collect()).await.unwrap();
    drop(log);
    let chunks = chunks(dir.path());
    let whole = std::fs::read(&chunks[1]).unwrap();
    std::fs::write(&chunks[1], b"").unwrap();
    let Err(StoreError::Log(error)) = Log::open(dir.path(), &small()) else { panic!("it forgets entries") };
    assert!(error.to_string().contains("is empty"), "{error}");
    std::fs::write(&chunks[1], whole).unwrap();
    // Made ahead, and never written to.
    let last = chunks.last().unwrap();
    let begins = Config::parse_chunk_file_name(last.file_name().unwrap().to_str().unwrap()).unwrap();
    let end = begins + std::fs::metadata(last).unwrap().len();
    std::fs::write(dir.path().join(Config::chunk_file_name(ChunkId(end))), b"").unwrap();
    assert_eq!(indexes(&Log::open(dir.path(), &small()).unwrap()).await.len(), 100);
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

#[tokio::test]
async fn what_may_never_have_been_synced_is_written_anew_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=205).map(|index| entry(1, index)).collect()).await.unwrap();
    drop(log);
    let chunks = chunks(dir.path());
    let before: Vec<_> = chunks.iter().map(|chunk| (inode(chunk), std::fs::read(chunk).unwrap())).collect();
    assert!(before.iter().all(|(_, content)| content.len() >= 128));
    // Chunks that were begun before the process was killed: they hide which is the last one with a record.
    let begun =
        ["900_000", "900_001"].map(|offset| dir.path().join(format!("r-00_000_000_000_000_{offset}.wal")));
    begun.iter().for_each(|path| std::fs::write(path, "").unwrap());
    let leftover = dir.path().join("r-00_000_000_000_000_000_000.wal.settling");
    std::fs::write(&leftover, "half of a chunk").unwrap();

    settle(dir.path()).unwrap();
    let newest = chunks.len() - 2;
    for (number, (chunk, (inode_before, content))) in chunks.iter().zip(before).enumerate() {
        assert_eq!(inode(chunk) != inode_before, number >= newest, "chunk {number} of {}", chunks.len());
        assert_eq!(std::fs::read(chunk).unwrap(), content);
    }
    assert!(!leftover.exists());

    begun.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let last = inode(&chunks[newest + 1]);
    let log = Log::open(dir.path(), &small()).unwrap();
    assert_ne!(inode(&chunks[newest + 1]), last);
    assert_eq!(indexes(&log).await, (1..=205).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_open_log_is_not_taken_away_from_under_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, vec![entry(1, 1)]).await.unwrap();
    assert!(matches!(Log::open(dir.path(), &small()), Err(StoreError::Locked(_))));
    append(&log, vec![entry(1, 2)]).await.unwrap();
    drop(log);
    assert_eq!(indexes(&Log::open(dir.path(), &small()).unwrap()).await, [1, 2]);
}

#[tokio::test]
async fn after_a_chunk_that_could_not_be_begun_nothing_is_written() {
    let root = tempfile::tempdir().unwrap();
    let (dir, away) = (root.path().join("log"), root.path().join("away"));
    let log = Log::open(&dir, &small()).unwrap();
    append(&log, vec![entry(1, 1)]).await.unwrap();
    std::fs::rename(&dir, &away).unwrap();
    let mut index = 2;
    while append(&log, vec![entry(1, index)]).await.is_ok() {
        index += 1;
        assert!(index < 100, "a chunk was begun in a directory that is not there");
    }
    std::fs::rename(&away, &dir).unwrap();
    for next in [index, index + 1, index + 2] {
        let (tell, told) = tokio::sync::oneshot::channel();
        let written =
            log.append(vec![entry(1, next)], move |result| tell.send(result.is_ok()).unwrap()).await;
        assert!(written.is_err(), "entry {next}");
        assert!(!told.await.unwrap(), "entry {next}");
    }
    assert!(log.save_vote(Vote { term: 2, committed: false, node: 1 }).await.is_err());
    assert!(log.sync().await.is_err());
    drop(log);
    let acknowledged = (1..index).collect::<Vec<_>>();
    let kept = indexes(&Log::open(&dir, &small()).unwrap()).await;
    assert!(kept.starts_with(&acknowledged), "{kept:?}");
}

#[tokio::test]
async fn purging_frees_files_and_may_run_past_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=500).map(|index| entry(1, index)).collect()).await.unwrap();
    let before = log.bytes_on_disk().unwrap();
    log.purge(LogPosition { term: 1, index: 400 }).await.unwrap();
    assert_eq!(indexes(&log).await, (401..=500).collect::<Vec<_>>());
    assert!(log.bytes_on_disk().unwrap() < before / 2);
    assert!(log.holds(LogPosition { term: 1, index: 30 }).unwrap());
    assert!(!log.holds(LogPosition { term: 2, index: 450 }).unwrap());

    log.purge(LogPosition { term: 2, index: 900 }).await.unwrap();
    assert_eq!(log.state().unwrap().last, Some(LogPosition { term: 2, index: 900 }));
    append(&log, vec![entry(2, 901)]).await.unwrap();
    assert_eq!(indexes(&log).await, [901]);
}

#[tokio::test]
async fn a_cut_frees_a_chunk_and_cuts_end_where_they_were_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    assert_eq!(log.next_cut(0).unwrap(), Some(0), "there is nothing to free, but it was not purged");
    for index in 1..=200 {
        append(&log, vec![entry(1, index)]).await.unwrap();
    }
    let (mut cuts, mut left) = (Vec::new(), log.bytes_on_disk().unwrap());
    while let Some(upto) = log.next_cut(150).unwrap() {
        log.purge(LogPosition { term: 1, index: upto }).await.unwrap();
        cuts.push(upto);
        let now = log.bytes_on_disk().unwrap();
        // A chunk ends with the record that fills it.
        assert!(now + 1_024 + 256 >= left, "{left} bytes, and {now} after one cut");
        left = now;
    }
    assert_eq!(cuts.last(), Some(&150));
    assert!(cuts.is_sorted_by(|one, next| one < next) && cuts.len() > 5, "{cuts:?}");
    assert_eq!(indexes(&log).await, (151..=200).collect::<Vec<_>>());
}

#[tokio::test]
async fn purging_over_a_tail_that_was_never_committed_leaves_nothing_of_it() {
    for conflicting_last in [3, 5, 8] {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), &small()).unwrap();
        append(&log, (1..=2).map(|index| entry(1, index)).collect()).await.unwrap();
        append(&log, (3..=conflicting_last).map(|index| entry(3, index)).collect()).await.unwrap();
        log.purge(LogPosition { term: 2, index: 5 }).await.unwrap();
        assert_eq!(log.state().unwrap().last, Some(LogPosition { term: 2, index: 5 }));
        append(&log, vec![entry(4, 6)]).await.unwrap();
        assert_eq!(indexes(&log).await, [6]);
        drop(log);
        assert_eq!(indexes(&Log::open(dir.path(), &small()).unwrap()).await, [6]);
    }
}

#[tokio::test]
async fn bytes_since_an_entry_survive_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=300).map(|index| entry(1, index)).collect()).await.unwrap();
    let since = |log: &Log| log.bytes_since(Some(200)).unwrap();
    let all = log.bytes_on_disk().unwrap();
    let third = since(&log);
    assert!(third > all / 4 && third < all / 2, "{third} of {all}");
    drop(log);
    let log = Log::open(dir.path(), &small()).unwrap();
    assert_eq!(since(&log), third);
    assert_eq!(log.bytes_since(None).unwrap(), log.bytes_on_disk().unwrap());
    assert_eq!(log.bytes_since(Some(300)).unwrap(), 0);
}

#[tokio::test]
async fn a_long_read_stops_at_its_limit_but_returns_something() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, (1..=50).map(|index| entry(1, index)).collect()).await.unwrap();
    assert_eq!(log.read(10, 40, 1).await.unwrap().len(), 1);
    let some = log.read(10, 40, 100).await.unwrap().len();
    assert!((2..30).contains(&some), "{some}");
}

#[tokio::test]
async fn many_appends_at_once_are_all_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for index in 1..=2_000 {
        let tell = tell.clone();
        log.append(vec![entry(1, index)], move |result| drop(tell.send(result))).await.unwrap();
    }
    for _ in 1..=2_000 {
        told.recv().await.unwrap().unwrap();
    }
    assert_eq!(log.0.flushing.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_follows_an_error_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), &small()).unwrap();
    append(&log, vec![entry(1, 1)]).await.unwrap();
    let first = append(&log, vec![entry(1, 3)]).await.unwrap_err();
    let second = append(&log, vec![entry(1, 2)]).await.unwrap_err();
    assert_eq!(second.to_string(), format!("the log stopped after an earlier error: {first}"));
    assert_eq!(second.kind(), first.kind());
}

#[test]
fn the_first_error_of_a_flush_is_what_later_ones_follow_from() {
    use super::wal::{Cause, OnFlush};
    use raft_log::Callback as _;
    let cause = Cause::default();
    // Left out without having been tried: that is no error.
    drop(OnFlush::new(cause.clone(), drop));
    OnFlush::new(cause.clone(), drop).send(Err(io::ErrorKind::StorageFull.into()));
    OnFlush::new(cause.clone(), drop).send(Err(io::ErrorKind::BrokenPipe.into()));
    let error = cause.behind(io::Error::other("sending on a closed channel"));
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(!error.to_string().contains("closed channel"), "{error}");
}
