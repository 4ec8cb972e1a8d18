//! The report of one machine as a page for people, whatever the length of what there is to say.

use super::terminal::{TABLE_WIDTH, fit, wrapped};
use crate::cli::output::facts;
use crate::escrow::reports::LIST_SEPARATOR;
use crate::proto::{ReportColumn, ReportRow};

/// Of each drive of a machine: the column, what stands above it, and how wide it is.
const DRIVES: [(&str, &str, usize); 5] = [
    ("drive", "DRIVE", 20),
    ("volume_status", "STATUS", 13),
    ("encryption_state", "ENCRYPTION", 13),
    ("protector_state", "PROTECTION", 10),
    ("cipher", "CIPHER", 16),
];

/// The report of one machine: what there is to say of it, its drives in a table, and what is amiss with each.
pub(in crate::cli) fn computer_text(columns: &[ReportColumn], rows: &[ReportRow]) -> String {
    let Some(first) = rows.first() else { return "nothing is known of it".to_owned() };
    let said =
        columns.iter().zip(&first.cells).filter(|(column, cell)| column.of_machine && !cell.is_empty());
    let names: Vec<(String, String)> = said
        .map(|(column, cell)| (column.name.replace('_', " "), cell.replace(LIST_SEPARATOR, "\n")))
        .collect();
    let indent = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let beside = |text: &str| wrapped(text, TABLE_WIDTH - indent).join(&format!("\n{:indent$}", ""));
    let pairs: Vec<(&str, String)> = names.iter().map(|(name, text)| (name.as_str(), beside(text))).collect();
    let mut parts = vec![facts(&pairs)];
    let cell = |row: &ReportRow, name: &str| {
        let found = columns.iter().zip(&row.cells).find(|(column, _)| column.name == name);
        found.map(|(_, cell)| cell.replace(LIST_SEPARATOR, ", ")).unwrap_or_default()
    };
    let drives: Vec<&ReportRow> = rows.iter().filter(|row| !cell(row, "drive").is_empty()).collect();
    if drives.is_empty() {
        parts.push("it told of no drives".to_owned());
        return parts.join("\n\n");
    }
    let heading = DRIVES.map(|(_, title, width)| fit(title, width));
    let mut lines = vec![heading.join("  ").trim_end().to_owned()];
    for row in &drives {
        let cells = DRIVES.map(|(name, _, width)| fit(&cell(row, name), width));
        lines.push(cells.join("  ").trim_end().to_owned());
    }
    parts.push(lines.join("\n"));
    for row in drives {
        let more = drive_text(columns, row);
        if !more.is_empty() {
            parts.push(format!("{}\n{more}", cell(row, "drive")));
        }
    }
    parts.join("\n\n")
}

/// What there is to say of a drive that has no room in the table.
fn drive_text(columns: &[ReportColumn], row: &ReportRow) -> String {
    let mut lines = Vec::new();
    for (name, before) in [("protectors", "protector "), ("volume_details", ""), ("keys_in_escrow", "key ")] {
        let cells = columns.iter().zip(&row.cells);
        let list = cells.filter(|(column, cell)| column.name == name && !cell.is_empty());
        for part in list.flat_map(|(_, cell)| cell.split(LIST_SEPARATOR)) {
            let text = wrapped(&format!("{before}{part}"), TABLE_WIDTH - 4).join("\n    ");
            lines.push(format!("  {text}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::super::render::tests::{columns, long_row};
    use super::*;
    use crate::escrow::reports::ReportKind;

    #[test]
    fn the_report_of_one_machine_fits_in_80_columns_and_cuts_nothing_off_but_names_in_its_table() {
        let columns = columns(ReportKind::Computer);
        let mut row = long_row(ReportKind::Computer);
        let place = |name: &str| columns.iter().position(|column| column.name == name).unwrap();
        let details =
            "not-encrypted: the volume must be encrypted, and it is not, which is a long story (code 1)";
        for (name, cell) in [
            ("drive", r"\\?\Volume{0f0e0d0c-0b0a-4908-8706-050403020100}\"),
            ("protectors", "tpm-pin-startup-key\nrecovery-password"),
            ("volume_details", details),
            ("keys_in_escrow", "655fc934-6a1a-4a86-819f-b086ade9f278 disclosed"),
            ("model", &"漢".repeat(40)),
        ] {
            row.cells[place(name)] = cell.to_owned();
        }
        let text = computer_text(&columns, &[row.clone(), row]);
        assert!(text.lines().all(|line| line.width() <= TABLE_WIDTH), "{text}");
        let whole: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [details, "protector tpm-pin-startup-key", "key 655fc934", r"100}\ protector"] {
            assert!(whole.contains(part), "{part} in {text}");
        }
        assert_eq!(text.matches('漢').count(), 40);
    }
}
