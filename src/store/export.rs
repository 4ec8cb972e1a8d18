//! Handing out whole tables of the state at one index: what a report needs of the base, in one fast pass.
//!
//! As for a snapshot, the keeper brings the overlay to the base up to an index and makes a pass over it;
//! applies go on. The pass is as long as the [`RowSink`] makes it, so a sink writes to a [spool](super::spool) and waits
//! for nobody. Unlike a snapshot, a report can be asked for again: it gives way to a closing node, and to writes that
//! would have to wait for it.

use tokio::sync::oneshot;

use super::StoreError;
use super::applied::Applied;
use super::keeper::Keeper;
use super::pass::{self, Pass};
use super::shared::Shared;
use crate::escrow::state::Table;

/// How full the overlay may be while tables are handed out, in percent of its bound; at the bound applying waits.
pub const OVERLAY_MAX_PERCENT: usize = 75;

/// Takes rows as they are handed out.
pub trait RowSink: Send {
    /// Takes a row: its table, its key within the table, and its value by [`format`](mod@super::format).
    ///
    /// # Errors
    /// Any error ends the handing out.
    fn take(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
}

/// What the keeper does, and to whom it answers.
pub(super) type ExportJob = Box<dyn FnOnce(&mut Keeper) + Send>;

/// Hands the rows of `tables` to `sink`, and answers it with where they stand.
pub(super) fn job<S: RowSink + 'static>(
    tables: &'static [Table],
    mut sink: S,
    done: oneshot::Sender<Result<(S, Applied), StoreError>>,
) -> ExportJob {
    Box::new(move |keeper| {
        let exported = keeper.export(tables, &mut sink, &|| done.is_closed());
        keeper.answer(done, exported.map(|upto| (sink, upto)));
    })
}

impl Keeper {
    fn export(
        &mut self,
        tables: &[Table],
        sink: &mut dyn RowSink,
        is_abandoned: &dyn Fn() -> bool,
    ) -> Result<Applied, StoreError> {
        let shared = self.shared.clone();
        // It may have waited behind a snapshot for longer than its caller did.
        check(&shared, is_abandoned)?;
        let upto = self.drain()?;
        for row in Pass::over(self, tables.iter().copied().map(pass::table)) {
            check(&shared, is_abandoned)?;
            let (key, value) = row?;
            let table = tables.iter().find(|table| **table as u8 == key[0]);
            sink.take(*table.expect("a pass reads what it is told to"), &key[1..], &value)?;
        }
        Ok(upto)
    }
}

/// Whether to go on.
fn check(shared: &Shared, is_abandoned: &dyn Fn() -> bool) -> Result<(), StoreError> {
    if shared.is_closing() {
        return Err(StoreError::Closed);
    }
    if is_abandoned() {
        return Err(StoreError::Abandoned);
    }
    if shared.is_overlay_over(OVERLAY_MAX_PERCENT) {
        return Err(StoreError::Crowded);
    }
    Ok(())
}
