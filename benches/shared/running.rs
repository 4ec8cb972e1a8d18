//! A cluster of three real processes to measure.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use strongroom::cli::local_cluster::LocalCluster;
use strongroom::escrow::features::FeatureLevel;
use strongroom::proto::StatusResponse;
use tempfile::TempDir;

use crate::common::{self, ALL, SOON, TestCluster};

/// The program that is measured: the one that is built with the bench, unless `STRONGROOM_PROGRAM` names another.
pub fn program() -> PathBuf {
    std::env::var_os("STRONGROOM_PROGRAM").map_or_else(common::program, PathBuf::from)
}

/// A cluster in `dir`, with more lines in the configuration of its nodes.
pub async fn form(dir: TempDir, config: &str) -> TestCluster {
    let mut cluster =
        LocalCluster::open_or_create(dir.path(), &common::plan(config), program()).expect("a layout");
    cluster.form().await.expect("a cluster forms");
    TestCluster { cluster, dir }
}

/// Waits until all nodes take what devices say.
pub async fn takes_compliance(test: &TestCluster) {
    let allowed = |status: &StatusResponse| status.feature_level >= FeatureLevel::COMPLIANCE.0;
    test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised");
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    u64::try_from(now).expect("before the end of time")
}
