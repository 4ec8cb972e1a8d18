//! Disks that fail and clocks that jump, under nodes that run: a library of ours (`shim.c`) stands between each node and the
//! C library, and does as the node's page says.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use strongroom::cli::local_cluster::NodePlan;

use crate::common::program;

/// What the library knows its page by.
const VARIABLE: &str = "NEMESIS_SHIM";
/// The page, beside a node's configuration.
const PAGE_FILE: &str = "shim.page";
/// The network namespace of a node, if it is to have one of its own.
pub const NAMESPACE_FILE: &str = "namespace";
/// As `struct page` in `shim.c` has it: numbers of eight bytes each, and a path that ends in a zero.
const PAGE_BYTES: usize = 4096;
const AHEAD: u64 = 0;
const FAILING: u64 = 8;
const LEFT: u64 = 16;
const STRUCK: u64 = 24;
const PATH: u64 = 32;

/// Calls that fail with an error of input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    Reads = 1,
    Syncs = 2,
    Writes = 4,
}

/// How many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    Once,
    /// Until it is mended.
    Always,
}

/// The faults of one node.
#[derive(Debug)]
pub struct Shim(File);

impl Shim {
    /// Of a node that was not started yet, and will be by [`program_with_faults`].
    pub fn of(node: &NodePlan) -> Self {
        let path = node.dir.join(PAGE_FILE);
        fs::write(&path, [0; PAGE_BYTES]).expect("written");
        Self(File::options().read(true).write(true).open(path).expect("just written"))
    }

    /// Has calls on files below `path` fail from now on, and on no others any more.
    pub fn fail(&self, fails: Fails, path: &Path, times: Times) {
        self.mend();
        let mut bytes = path.as_os_str().as_encoded_bytes().to_vec();
        bytes.push(0);
        self.0.write_all_at(&bytes, PATH).expect("written");
        self.forget();
        self.put(LEFT, if times == Times::Once { 1 } else { u64::MAX });
        self.put(FAILING, fails as u64);
    }

    /// Has nothing fail any more.
    pub fn mend(&self) {
        self.put(FAILING, 0);
    }

    /// Forgets what has failed.
    pub fn forget(&self) {
        self.put(STRUCK, 0);
    }

    /// How many calls have failed since the last [`Shim::fail`] or [`Shim::forget`].
    pub fn struck(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, STRUCK).expect("read");
        u64::from_ne_bytes(bytes)
    }

    /// Sets the wall clock of the node ahead of the machine's; behind it if negative.
    pub fn set_clock(&self, ahead_seconds: i64) {
        self.0.write_all_at(&ahead_seconds.to_ne_bytes(), AHEAD).expect("written");
    }

    fn put(&self, at: u64, number: u64) {
        self.0.write_all_at(&number.to_ne_bytes(), at).expect("written");
    }
}

/// The binary under test behind the library, each node in its namespace if it has one. Made once in a process.
pub fn program_with_faults() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(make).clone()
}

fn make() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nemesis/shim/shim.c");
    let (library, script) = (dir.join("nemesis-shim.so"), dir.join("nemesis-node"));
    // Other runs may use the same files: each is replaced in one step.
    let new = |path: &Path| path.with_extension(std::process::id().to_string());
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(new(&library));
    let compiled = compiler.arg(&source).status().expect("a C compiler: tests/run installs one");
    assert!(compiled.success(), "{} compiles", source.display());
    // A node is told by its configuration, and so is its page.
    let (of_library, of_program) = (library.display(), program());
    let text = format!(
        "#!/bin/sh\n\
         for argument; do case $argument in */node.toml) node=${{argument%/*}} ;; esac; done\n\
         set -- env {VARIABLE}=\"$node/{PAGE_FILE}\" LD_PRELOAD='{of_library}' '{}' \"$@\"\n\
         if [ -e \"$node/{NAMESPACE_FILE}\" ]; then set -- nsenter --net=\"$node/{NAMESPACE_FILE}\" \"$@\"; fi\n\
         exec \"$@\"\n",
        of_program.display()
    );
    fs::write(new(&script), text).expect("written");
    fs::set_permissions(new(&script), fs::Permissions::from_mode(0o755)).expect("its own");
    for made in [&library, &script] {
        fs::rename(new(made), made).expect("in its place");
    }
    script
}
