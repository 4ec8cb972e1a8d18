//! Bringing the machines to the cluster: what a directory knows of them, their recovery keys, what they say.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::stream;
use strongroom::client::{BulkAnswer, ClientError, Deposit, MachineNoted};
use strongroom::escrow::compliance::words::MachineType;
use strongroom::escrow::ids::UserName;
use strongroom::escrow::inventory::{Description, ImportedMachine};
use strongroom::escrow::secrets::{SecretKind, bitlocker};
use tokio::task::JoinSet;

use crate::common::{ALL, TestCluster};
use crate::keys::key;
use crate::machines::{Flaw, document, flaw};
use crate::upload::upload;

/// Machines, or machines whose keys, are handed to the client at once.
const STREAM: u64 = 16_384;
/// Documents handed to the client at once, and such calls under way.
const ROUND: u64 = 4_096;
const UPLOADERS: u64 = 2;

/// How much was brought, and how that went.
pub struct Loaded {
    count: u64,
    took: Duration,
    /// Calls that were made again, because the cluster did not take them in time.
    again: u64,
}

impl Loaded {
    /// Prints the rate.
    pub fn show(&self, what: &str) {
        let Self { count, took, again } = self;
        let (seconds, rate) = (took.as_secs_f64(), *count as f64 / took.as_secs_f64());
        println!("{what:<28} {count:>8} {seconds:>7.1} s {rate:>7.0} a second {again:>3} calls again");
    }
}

/// Has the machines noted, as of a directory.
pub async fn machines(test: &TestCluster, machines: u64) -> Loaded {
    let client = test.client("importer", &ALL);
    over_one_stream(machines, async |numbers| {
        let mut count = 0;
        let all = stream::iter(numbers.map(|n| (n, imported(n))));
        let noted = |n, noted| {
            assert!(!matches!(noted, MachineNoted::Refused(_)), "machine {n}: {noted:?}");
            count += 1;
        };
        client.import_machines(all, noted).await.map(|()| count)
    })
    .await
}

/// Escrows the keys of the machines, as an import of them does.
pub async fn keys(test: &TestCluster, machines: u64) -> Loaded {
    let client = test.client("importer", &ALL);
    over_one_stream(machines, async |numbers| {
        let mut count = 0;
        let all = stream::iter(numbers.flat_map(|n| deposits(n).map(move |deposit| (n, deposit))));
        let answered = |n, answer| {
            assert!(matches!(answer, BulkAnswer::Kept(_)), "machine {n}: {answer:?}");
            count += 1;
        };
        client.escrow_many(all, answered).await.map(|()| count)
    })
    .await
}

/// Has `bring` bring some machines after the other. What the cluster does not take in time is brought again, which is safe.
async fn over_one_stream(
    machines: u64,
    bring: impl AsyncFn(Range<u64>) -> Result<u64, ClientError>,
) -> Loaded {
    let (began, mut first, mut count, mut again) = (Instant::now(), 0, 0, 0);
    while first < machines {
        let last = machines.min(first + STREAM);
        match bring(first..last).await {
            Ok(brought) => (first, count) = (last, count + brought),
            Err(ClientError::Unavailable { .. }) => again += 1,
            Err(error) => panic!("{error}"),
        }
    }
    Loaded { count, took: began.elapsed(), again }
}

/// Uploads what the machines say at `at`.
pub async fn documents(test: &TestCluster, machines: u64, at: u64) -> Loaded {
    let began = Instant::now();
    let mut uploaders = JoinSet::new();
    for uploader in 0..UPLOADERS {
        let client = test.client("importer", &ALL);
        uploaders.spawn(async move {
            let (mut first, mut again) = (uploader * ROUND, 0);
            while first < machines {
                let last = machines.min(first + ROUND);
                let documents: Vec<String> = (first..last).map(|n| document(n, at)).collect();
                again += upload(&client, &documents).await;
                first += UPLOADERS * ROUND;
            }
            again
        });
    }
    let again = uploaders.join_all().await.iter().sum();
    Loaded { count: machines, took: began.elapsed(), again }
}

/// What a directory knows of machine number `n`: what its device says of itself as well.
fn imported(n: u64) -> ImportedMachine {
    ImportedMachine {
        machine: format!("PC-{n:07}").parse().expect("a machine id"),
        description: Description {
            domain: "CORP".to_owned(),
            name: format!("LAPTOP-{n:07}"),
            make: format!("Maker {}", n % 7),
            model: format!("Model {}", n % 113),
            machine_type: MachineType::Portable,
            os: "Windows 11 24H2".to_owned(),
        },
        users: vec![user(n)],
    }
}

/// The keys of machine number `n` that are in escrow.
fn deposits(n: u64) -> impl Iterator<Item = Deposit> {
    let kept = if flaw(n) == Some(Flaw::NoKey) { 1 } else { 2 };
    (0..).zip(["C:", "D:"]).take(kept).map(move |(place, volume)| {
        let key_id = key(n, place);
        let (digits, _) = key_id.0.as_u64_pair();
        Deposit {
            machine: format!("PC-{n:07}").parse().expect("a machine id"),
            volume: volume.parse().expect("a volume id"),
            kind: SecretKind::BitlockerPassword,
            key_id: Some(key_id),
            secret: bitlocker::from_halves(std::array::from_fn(|group| (digits >> (6 * group)) as u16)),
            package: None,
            user: Some(user(n)),
            pending: false,
        }
    })
}

fn user(n: u64) -> UserName {
    format!(r"CORP\user{n}").parse().expect("a user")
}
