//! Errors in words.

use std::error::Error;

/// An error and what caused it, in one line. A cause that only repeats what is above it is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a peer answered, or why it could not be asked, without the shape that tonic gives it.
pub fn status(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    if let Some(source) = status.source() {
        let cause = chain(source);
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[test]
    fn a_chain_names_each_cause_once() {
        let inner = std::io::Error::other("disk on fire");
        let outer = std::io::Error::other(inner);
        assert_eq!(chain(&outer), "disk on fire");
    }
}
