//! A machine's report as a JSON document: what `compliance put` takes and `compliance get` shows.
//!
//! The schema beside this file, [`SCHEMA`], describes it for those who write agents and scripts. A test holds it against
//! the types: a field or a word that is in one and not in the other fails it.

use serde::de::DeserializeOwned;

use super::facts::MachineReport;
use crate::escrow::ids::Invalid;

/// Longest document, in bytes: room for a machine with every volume it may have.
pub const DOCUMENT_MAX_BYTES: usize = 128 * 1_024;
/// The JSON Schema (draft 2020-12) of a document.
pub const SCHEMA: &str = include_str!("report.schema.json");

/// What errors call the document as a whole.
const FIELD: &str = "document";
/// Most bytes of the beginning and of the end of what an error says: it repeats what stood in the document, which may be
/// longer than a message of an error may be. At the end stands what was expected, and where.
const ERROR_ENDS_MAX_BYTES: (usize, usize) = (160, 640);
/// The same of the path of the field, of which an unknown name may be a part.
const PATH_ENDS_MAX_BYTES: (usize, usize) = (96, 96);

impl MachineReport {
    /// Reads a document and checks it.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the field that is wrong: `volumes[1].percent`.
    pub fn from_json(text: &str) -> Result<Self, Invalid> {
        if text.len() > DOCUMENT_MAX_BYTES {
            return Err(Invalid::new(FIELD, format!("at most {DOCUMENT_MAX_BYTES} bytes")));
        }
        read::<Self>("", text)?.checked()
    }

    /// As a document on one line, every field written out.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text, numbers and lists of them, and no I/O")
    }

    /// As a document that people read.
    pub fn to_json_pretty(&self) -> String {
        serde_json::to_string_pretty(self).expect("text, numbers and lists of them, and no I/O")
    }
}

/// Reads one JSON object. Errors name the path of what is wrong, below `root` if that is not empty.
pub(super) fn read<T: DeserializeOwned>(root: &str, text: &str) -> Result<T, Invalid> {
    let whole = if root.is_empty() { FIELD } else { root };
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // What has no name yet ends in a question mark.
        let path = error.path().to_string();
        let field = match (path.trim_end_matches(['?', '.']), root) {
            ("", _) => whole.to_owned(),
            (path, "") => path.to_owned(),
            (path, root) => format!("{root}.{path}"),
        };
        let said = shortened(error.inner().to_string(), ERROR_ENDS_MAX_BYTES);
        Invalid::new(shortened(field, PATH_ENDS_MAX_BYTES), format!("a valid value: {said}"))
    })?;
    reader.end().map_err(|_| Invalid::new(whole, "one JSON object and nothing after it"))?;
    Ok(value)
}

/// The text without its middle if it is longer than its beginning and its end may be.
fn shortened(text: String, (begin, end): (usize, usize)) -> String {
    if text.len() <= begin + end {
        return text;
    }
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let begin = (0..=begin).rev().find(is_boundary).unwrap_or(0);
    let end = (text.len() - end..text.len()).find(is_boundary).unwrap_or(text.len());
    format!("{} … {}", &text[..begin], &text[end..])
}

#[cfg(test)]
mod tests;
