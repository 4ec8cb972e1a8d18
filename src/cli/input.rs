//! Reading secrets: from standard input or a file, bounded, wiped from memory when done with. Never from an
//! argument, which every user of a machine can see.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::Path;

use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use crate::escrow::secrets::SECRET_MAX_BYTES;
use crate::secret::Secret;

/// Most bytes read for a secret or a key package: room for the longest secret and a line end.
pub const INPUT_MAX_BYTES: usize = SECRET_MAX_BYTES + 2;

/// Reads a secret as text from `file`, or from standard input if there is none, line end included.
///
/// # Errors
/// [`Exit::Invalid`] if it cannot be read or is longer than [`INPUT_MAX_BYTES`]. The path is not repeated: it might
/// be a secret given by mistake.
pub fn secret(file: Option<&Path>) -> Result<Secret, Failure> {
    match file {
        Some(path) => read_file(path, "secret", "--secret-file"),
        None => {
            if io::stdin().is_terminal() {
                eprintln!("Type or paste the secret, then Enter and Ctrl-D; it is shown as you type:");
            }
            stdin_unbuffered()
                .map_err(Problem::Unreadable)
                .and_then(read)
                .map_err(|problem| problem.of("secret", "standard input"))
        }
    }
}

/// Reads a binary key package.
///
/// # Errors
/// As [`secret`].
pub fn package(path: &Path) -> Result<Secret, Failure> {
    read_file(path, "package", "--package-file")
}

fn read_file(path: &Path, field: &str, flag: &str) -> Result<Secret, Failure> {
    let source = format!("the file given with {flag}");
    File::open(path).map_err(Problem::Unreadable).and_then(read).map_err(|problem| problem.of(field, &source))
}

/// Standard input without the buffer of the standard library, which would keep a copy that is not wiped.
pub(super) fn stdin_unbuffered() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

enum Problem {
    TooLong,
    Unreadable(io::Error),
}

impl Problem {
    fn of(self, field: &str, source: &str) -> Failure {
        let message = match self {
            Self::TooLong => format!("{field}: {source} has more than {INPUT_MAX_BYTES} bytes"),
            Self::Unreadable(error) => format!("{field}: cannot read {source}: {error}"),
        };
        Failure::new(Exit::Invalid, message)
    }
}

fn read(source: impl Read) -> Result<Secret, Problem> {
    // Room for everything from the start: growing would leave copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(INPUT_MAX_BYTES + 1));
    source.take(INPUT_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Problem::Unreadable)?;
    if bytes.len() > INPUT_MAX_BYTES {
        return Err(Problem::TooLong);
    }
    Ok(Secret::new(std::mem::take(&mut *bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(content: &[u8]) -> Result<Secret, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        secret(Some(file.path()))
    }

    #[test]
    fn the_longest_secret_is_read_whole_and_a_longer_one_is_invalid() {
        let longest = vec![b'x'; INPUT_MAX_BYTES];
        assert_eq!(from_file(&longest).unwrap().expose(), longest);
        let failure = from_file(&[longest, vec![b'x']].concat()).unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.starts_with("secret: "), "{failure}");
    }

    #[test]
    fn a_file_that_is_missing_is_invalid_and_its_path_is_not_repeated() {
        let failure = secret(Some(Path::new("/nowhere/111111-222222"))).unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(!failure.message.contains("111111"), "{failure}");
    }
}
