//! What the documentation of the tests says of them is so.

use std::fs;
use std::path::Path;

/// Every test that is named is there.
#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/README.md")).expect("the documentation");
    // Between backquotes: a path, two colons and a name.
    let named = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::"));
    let named: Vec<_> = named.collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, name) in named {
        let file = format!("{file}.rs");
        let source = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut functions = source.split_inclusive("fn ").zip(source.split("fn ").skip(1));
        let is_test = |(before, after): (&str, &str)| {
            // Its attribute stands right before it, or a word or two of proptest's.
            let attributes = before.rsplit("\n\n").next().unwrap_or_default();
            after.starts_with(&format!("{name}(")) && attributes.contains("test")
        };
        assert!(functions.any(is_test), "{file} has no test {name}");
    }
}
