//! File systems of a size of our choosing.

use std::path::PathBuf;
use std::process::Command;

/// A file system in memory, unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Of `size` as `mount` takes it, over `dir`. `None` if this process may not mount.
    pub fn over(dir: PathBuf, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"]).arg(&dir);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(dir))
    }

    /// Has another size from now on.
    pub fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={size}")]).arg(&self.0);
        assert!(mount.status().expect("mount").success(), "of another size");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that still runs has it open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
