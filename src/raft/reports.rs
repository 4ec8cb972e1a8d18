//! What reports read of this node's replica: all of it at one index, whether or not there is a quorum.

use super::error::NodeError;
use super::node::Node;
use super::on_own_thread;
use crate::escrow::ids::Timestamp;
use crate::escrow::records::LogPosition;
use crate::store::spool::Spool;
use crate::store::spool::machines::{MachineSink, TABLES, TABLES_WITH_CHANGES};

impl Node {
    /// Room on the disk for one report.
    pub fn spool(&self) -> Spool {
        self.inner.spools.begin()
    }

    /// Takes down what is known of every machine, with how it stood at a time in the past if asked for, and where that
    /// stands. Writes go on meanwhile.
    ///
    /// # Errors
    /// [`NodeError::Store`]: see [`Machine::export`](crate::store::machine::Machine::export).
    pub async fn take_machines(
        &self,
        spool: Spool,
        as_of: Option<Timestamp>,
    ) -> Result<(MachineSink, LogPosition), NodeError> {
        let tables = if as_of.is_some() { TABLES_WITH_CHANGES } else { TABLES };
        // It makes a file for each table, and looks at the disk for each.
        let sink = on_own_thread(move || Ok(MachineSink::new(spool, as_of)?)).await?;
        let (sink, applied) = self.inner.storage.machine.export(tables, sink).await?;
        Ok((sink, applied.position.unwrap_or_default()))
    }
}
