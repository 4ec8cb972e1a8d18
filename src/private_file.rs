//! Who may read a private key file: the one rule for TLS keys, the CA's key and a node's identity.
//!
//! | the file | accepted |
//! |---|---|
//! | belongs to the user this process runs as | its owner's alone: mode 0600 or less |
//! | belongs to root, and this process does not run as root | readable by its group as well: 0640 or less |
//! | is in `$CREDENTIALS_DIRECTORY` | anything but permissions for the world |
//!
//! The owner of a file can take permissions away, so a file of our own that others may read is a mistake, and is
//! refused. A file of root's is root's gift: this process can neither change it nor read it but through the group, and
//! who else is in that group is for root to decide. That is how a Kubernetes secret arrives for a user that is not root
//! (`defaultMode: 0400` with `fsGroup` shows as 0440, root, and the group), and PostgreSQL has the same
//! rule for its server key (`ssl_key_file`). In systemd's directory of credentials,
//! mode 0400 shows as 0440 where the service's user has access by an ACL, whose mask takes the place of the group's bits
//! (systemd.exec, "Credentials").
//!
//! The owner itself is not looked at beyond that: whoever can write into the directory could replace the file anyway.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

/// Permission bits of anybody but the owner.
const OTHERS: u32 = 0o077;
/// All of those but that the group may read.
const MORE_THAN_GROUP_READ: u32 = 0o037;
/// Permission bits of those who are neither the owner nor in the group.
const WORLD: u32 = 0o007;
/// The user that may do anything.
const ROOT: u32 = 0;
/// Where a service manager puts credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What decides whether a file is private enough for this process.
#[derive(Debug, Clone)]
pub struct Reader {
    user: u32,
    credentials: Option<OsString>,
}

impl Reader {
    /// This process, as it runs.
    pub fn this_process() -> Self {
        Self::with_credentials(std::env::var_os(CREDENTIALS_DIRECTORY))
    }

    /// This process with another directory of credentials.
    pub(crate) fn with_credentials(credentials: Option<OsString>) -> Self {
        Self { user: rustix::process::geteuid().as_raw(), credentials }
    }

    /// The mode (permission bits) of the file at `path` if it lets others at it; `None` if it is private. Pass the
    /// metadata of the open file, so that what is checked is what is read.
    pub fn exposed(&self, path: &Path, metadata: &Metadata) -> Option<u32> {
        let mode = metadata.mode() & 0o7777;
        (mode & self.forbidden(path, metadata.uid()) != 0).then_some(mode)
    }

    fn forbidden(&self, path: &Path, owner: u32) -> u32 {
        let directory = self.credentials.as_ref().filter(|directory| !directory.is_empty());
        match directory {
            Some(directory) if is_inside(path, Path::new(directory)) => WORLD,
            _ if owner == ROOT && self.user != ROOT => MORE_THAN_GROUP_READ,
            _ => OTHERS,
        }
    }
}

/// Whether `path`, as it is written, stays in `directory`: one that climbs out of it again begins with it too.
fn is_inside(path: &Path, directory: &Path) -> bool {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    path.starts_with(directory) && !climbs
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = 990;

    fn accepts(user: u32, owner: u32, path: &str, mode: u32) -> bool {
        let reader = Reader { user, credentials: Some("/run/credentials/strongroom.service".into()) };
        mode & reader.forbidden(Path::new(path), owner) == 0
    }

    #[test]
    fn only_root_may_hand_a_key_over_through_a_group() {
        let path = "/etc/strongroom/tls/node.key";
        for (user, owner, mode, accepted) in [
            (SERVICE, SERVICE, 0o600, true),
            (SERVICE, SERVICE, 0o400, true),
            (SERVICE, SERVICE, 0o440, false),
            (SERVICE, SERVICE, 0o620, false),
            (SERVICE, SERVICE, 0o604, false),
            (SERVICE, ROOT, 0o440, true),
            (SERVICE, ROOT, 0o640, true),
            (SERVICE, ROOT, 0o660, false),
            (SERVICE, ROOT, 0o444, false),
            (SERVICE, SERVICE + 1, 0o440, false),
            (ROOT, ROOT, 0o600, true),
            (ROOT, ROOT, 0o440, false),
        ] {
            assert_eq!(accepts(user, owner, path, mode), accepted, "user {user}, owner {owner}, {mode:04o}");
        }
    }

    #[test]
    fn a_credential_may_show_an_acl_mask_but_nothing_for_the_world() {
        let inside = "/run/credentials/strongroom.service/node.key";
        assert!(accepts(SERVICE, SERVICE, inside, 0o440));
        assert!(!accepts(SERVICE, SERVICE, inside, 0o444));
        assert!(!accepts(SERVICE, SERVICE, "/run/credentials/strongroom.service.d/node.key", 0o440));
    }

    #[test]
    fn a_path_that_climbs_out_of_the_credentials_is_no_credential() {
        let credentials = "/run/credentials/strongroom.service";
        for climbing in
            ["../../../etc/strongroom/node.key", "x/../../other.service/node.key", "x/../node.key"]
        {
            let path = format!("{credentials}/{climbing}");
            assert!(!accepts(SERVICE, SERVICE, &path, 0o440), "{path}");
            assert!(accepts(SERVICE, SERVICE, &path, 0o400), "{path}: private is private");
        }
        assert!(accepts(SERVICE, SERVICE, &format!("{credentials}/./node.key"), 0o440));
    }
}
