//! The `strongroom` command: the only place that ends the process.

fn main() {}
