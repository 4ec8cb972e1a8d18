//! Making the rows of a report and sending them, on a thread of its own: what it reads is on the disk.

use tokio::runtime::Handle;
use tonic::Status;

use super::asked::{Asked, Order};
use super::{Context, Source, SourceKind, cells};
use crate::escrow::audit::query::{Filter, Window};
use crate::escrow::ids::MachineId;
use crate::escrow::lookup;
use crate::escrow::reports::{KeyRequest, MachineReport, RecoveryFilter, Row};
use crate::proto::report_chunk::Part;
use crate::proto::{Freshness, ReportChunk, ReportHeader, ReportRow, ReportRows, ReportTotals};
use crate::raft::NodeError;
use crate::rpc::serving::Serving;
use crate::store::StoreError;
use crate::store::format;
use crate::store::spool::Spool;
use crate::store::spool::sort::Sorter;

/// Rows sent at once, at most; and about how many bytes of them.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 64 * 1024;

/// Why a report ends before its totals.
struct End(Status);

impl<E: Into<NodeError>> From<E> for End {
    fn from(error: E) -> Self {
        Self(error.into().into())
    }
}

/// Whether there is room for another row.
#[derive(PartialEq, Eq)]
enum Room {
    Left,
    None,
}

/// One report while it is sent.
pub(super) struct Sender {
    context: Context,
    serving: Serving<ReportChunk>,
    runtime: Handle,
    order: Order,
    batch: Vec<ReportRow>,
    batch_bytes: usize,
    totals: ReportTotals,
}

impl Sender {
    pub fn new(context: Context, serving: Serving<ReportChunk>, order: Order) -> Self {
        Self {
            context,
            serving,
            runtime: Handle::current(),
            order,
            batch: Vec::new(),
            batch_bytes: 0,
            totals: ReportTotals::default(),
        }
    }

    /// Takes down what the report needs and, from there, sends it.
    pub async fn begin(self, asked: Asked, freshness: Freshness) {
        let spool = self.context.node.spool();
        let source = tokio::select! {
            // Nobody waits for it any more: then nothing more is read of the base either.
            () = self.serving.left() => return,
            source = self.context.source_of(&asked, &spool) => source,
        };
        let source = match source {
            Ok(source) => source,
            Err(status) => return self.serving.end(status),
        };
        let header = super::header(&asked, &source, freshness);
        let span = tracing::Span::current();
        let served = tokio::task::spawn_blocking(move || {
            let _in_span = span.enter();
            self.serve(header, &asked, source, spool);
        });
        // It tells the reader itself what went wrong; after a panic there are no totals.
        drop(served.await);
    }

    fn serve(mut self, header: ReportHeader, asked: &Asked, source: Source, spool: Spool) {
        let made = self.send(Part::Header(header)).and_then(|()| self.make(asked, source, spool));
        let sent =
            made.and_then(|()| self.flush()).and_then(|()| self.send(Part::Totals(self.totals.clone())));
        if let Err(End(why)) = sent {
            tracing::info!(why = why.message(), "a report breaks off");
            self.serving.end(why);
        }
    }

    fn make(&mut self, asked: &Asked, source: Source, spool: Spool) -> Result<(), End> {
        let mut sorter =
            self.order.column.map(|column| ToSort { column, sorter: Sorter::new(spool), count: 0 });
        match source.of {
            SourceKind::Trail(window) => {
                self.make_of_trail(window, source.position.index, &asked.recovery, &mut sorter)?;
            }
            of => {
                let mut report = MachineReport::new(asked.machines.clone(), source.policy);
                self.make_of_machines(of, &mut report, &mut sorter)?;
            }
        }
        let Some(ToSort { sorter, .. }) = sorter else { return Ok(()) };
        for record in sorter.finish()? {
            let (_, value) = record?;
            let cells: Vec<String> = format::decode(&value)?;
            if self.deliver(cells)? == Room::None {
                break;
            }
        }
        Ok(())
    }

    fn make_of_machines(
        &mut self,
        of: SourceKind,
        report: &mut MachineReport,
        sorter: &mut Option<ToSort>,
    ) -> Result<(), End> {
        let bundles: Box<dyn Iterator<Item = Result<_, StoreError>>> = match of {
            SourceKind::Machine(bundle) => Box::new(std::iter::once(Ok(*bundle))),
            SourceKind::Machines(sink) => Box::new(sink.bundles()?),
            SourceKind::Trail(_) => return Ok(()),
        };
        let mut last = None;
        for (number, bundle) in bundles.enumerate() {
            // A report without rows sends nothing for long.
            if number % BATCH_ROWS == 0 {
                self.check()?;
            }
            let bundle = bundle?;
            let rows = report.add(&bundle);
            // A page ends between two machines: it is a machine that the next one begins behind.
            if sorter.is_none() && !rows.is_empty() && self.is_full() {
                self.totals.truncated = true;
                self.totals.next = last.as_ref().map(MachineId::to_string).unwrap_or_default();
                return Ok(());
            }
            for row in rows {
                match sorter {
                    Some(sorter) => sorter.push(&row, self.order.descending)?,
                    None => self.send_row(cells(&row))?,
                }
            }
            self.totals.machines = report.machines();
            last = Some(bundle.machine.id);
        }
        for row in report.finish() {
            if self.take(row, sorter)? == Room::None {
                return Ok(());
            }
        }
        Ok(())
    }

    fn make_of_trail(
        &mut self,
        mut window: Window,
        index: u64,
        filter: &RecoveryFilter,
        sorter: &mut Option<ToSort>,
    ) -> Result<(), End> {
        while !window.is_empty() {
            self.check()?;
            let view = self.context.node.view()?;
            let page = window.next_page(&view, &Filter::default(), false).map_err(NodeError::State)?;
            let mut rows = Vec::new();
            for request in page.iter().filter_map(KeyRequest::of).filter(|request| request.matches(filter)) {
                let key = lookup::key(&view, request.key_id).map_err(NodeError::State)?;
                // By the state that the report is made from: this view may be a later one.
                let key = key.filter(|key| key.position.index <= index);
                rows.push(request.row(key.map(|key| key.kind)));
            }
            // Not across the sending: the base stands still behind a view.
            drop(view);
            for row in rows {
                if self.take(row, sorter)? == Room::None {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes a row: to be sorted, or to be sent.
    fn take(&mut self, row: Row, sorter: &mut Option<ToSort>) -> Result<Room, End> {
        match sorter {
            Some(sorter) => sorter.push(&row, self.order.descending).map(|()| Room::Left).map_err(End::from),
            None => self.deliver(cells(&row)),
        }
    }

    fn deliver(&mut self, cells: Vec<String>) -> Result<Room, End> {
        if self.is_full() {
            self.totals.truncated = true;
            return Ok(Room::None);
        }
        self.send_row(cells).map(|()| Room::Left)
    }

    /// Whether there are as many rows as were asked for.
    fn is_full(&self) -> bool {
        self.order.limit > 0 && self.totals.rows >= self.order.limit
    }

    fn send_row(&mut self, cells: Vec<String>) -> Result<(), End> {
        self.totals.rows += 1;
        self.batch_bytes += cells.iter().map(|cell| cell.len() + 4).sum::<usize>();
        self.batch.push(ReportRow { cells });
        if self.batch.len() >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.check()?;
        self.batch_bytes = 0;
        let rows = std::mem::take(&mut self.batch);
        self.send(Part::Rows(ReportRows { rows }))
    }

    fn send(&self, part: Part) -> Result<(), End> {
        self.runtime.block_on(self.serving.send(ReportChunk { part: Some(part) })).map_err(End)
    }

    /// Whether it may go on: a long report outlives the moment in which its reader was admitted.
    fn check(&self) -> Result<(), End> {
        if self.serving.is_left() {
            return Err(End(Status::cancelled("nobody reads it any more")));
        }
        self.serving.check().map_err(End)
    }
}

/// Rows to be sorted.
struct ToSort {
    column: usize,
    sorter: Sorter,
    count: u64,
}

impl ToSort {
    fn push(&mut self, row: &Row, descending: bool) -> Result<(), StoreError> {
        let mut key = row[self.column].sort_key();
        if descending {
            key.iter_mut().for_each(|byte| *byte = !*byte);
        }
        // Rows that are alike there stay in the order in which they came.
        key.extend_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        self.sorter.push(&key, &format::encode(&cells(row)))
    }
}
