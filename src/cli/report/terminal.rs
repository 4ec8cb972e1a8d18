//! Texts in the columns of a terminal: wide letters take two of them, and some none.

use unicode_width::UnicodeWidthStr as _;

/// Columns of a terminal that a table takes.
pub(super) const TABLE_WIDTH: usize = 80;

/// A text in exactly as many columns of a terminal; what does not fit is cut off, and seen to be.
pub(super) fn fit(text: &str, width: usize) -> String {
    let found = text.width();
    if found <= width {
        return format!("{text}{}", " ".repeat(width - found));
    }
    // One is left for the mark.
    let cut = &text[..end_within(text, width - 1)];
    format!("{cut}…{}", " ".repeat(width - 1 - cut.width()))
}

/// How many bytes of a text fit in so many columns.
fn end_within(text: &str, width: usize) -> usize {
    let ends = text.char_indices().map(|(start, letter)| start + letter.len_utf8());
    ends.take_while(|end| text[..*end].width() <= width).last().unwrap_or(0)
}

/// A text on lines of so many columns at most, between words where that can be.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let mut rest = line;
        while rest.width() > width {
            // A letter that is wider than the line would never end.
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let end = end_within(rest, width).max(first);
            let space = rest[..end].rfind(' ').filter(|space| *space > 0);
            let at = if rest[end..].starts_with(' ') { end } else { space.unwrap_or(end) };
            lines.push(rest[..at].trim_end().to_owned());
            rest = rest[at..].trim_start();
        }
        if !rest.is_empty() || line.is_empty() {
            lines.push(rest.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_is_that_on_a_terminal() {
        assert_eq!(fit("abcdef", 4), "abc…");
        for (text, width, expected) in [
            ("漢字漢字", 8, "漢字漢字"),
            ("漢字漢字", 7, "漢字漢…"),
            ("漢字漢字", 6, "漢字… "),
            ("é", 3, "é  "),
        ] {
            assert_eq!(fit(text, width), expected);
        }
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 6), ["one", "two", "three"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("漢字", 1), ["漢", "字"]);
        assert_eq!(wrapped("a\n\nb", 5), ["a", "", "b"]);
    }
}
