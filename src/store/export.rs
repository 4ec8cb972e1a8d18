//! Handing out whole tables of the state at one index: what a report needs of the base, in one fast pass.
//!
//! As for a snapshot, the keeper brings the overlay to the base up to an index and reads the base while nothing writes it;
//! applies go on in the overlay. The pass is as long as the [`RowSink`] makes it, so a sink writes to a [spool](super::spool)
//! and waits for nobody. Unlike a snapshot, a report can be asked for again: it gives way to a closing node, and to
//! writes that would have to wait for it.

use tokio::sync::oneshot;

use super::StoreError;
use super::applied::Applied;
use super::keeper::Keeper;
use crate::escrow::state::Table;

/// How full the overlay may be while tables are handed out, in percent of its bound; at the bound applying waits.
pub const OVERLAY_MAX_PERCENT: usize = 75;
/// Rows between two looks at whether to go on.
const LOOK_EVERY_ROWS: usize = 1_024;

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
        // It may have waited behind a snapshot for longer than its caller did.
        self.check_export(is_abandoned)?;
        let upto = self.drain()?;
        for table in tables {
            for (number, row) in self.base.table(*table).enumerate() {
                if number % LOOK_EVERY_ROWS == 0 {
                    self.check_export(is_abandoned)?;
                }
                let (key, value) = row?;
                sink.take(*table, &key[1..], &value)?;
            }
        }
        Ok(upto)
    }

    fn check_export(&self, is_abandoned: &dyn Fn() -> bool) -> Result<(), StoreError> {
        if self.shared.is_closing() {
            return Err(StoreError::Closed);
        }
        if is_abandoned() {
            return Err(StoreError::Abandoned);
        }
        if self.shared.is_overlay_over(OVERLAY_MAX_PERCENT) {
            return Err(StoreError::Crowded);
        }
        Ok(())
    }
}
