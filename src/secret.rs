//! Secrets in memory: wiped when dropped, redacted when printed.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

/// Plaintext that must not be shown or kept. `Debug` does not show it, there is no `Display`, no serde and no
/// comparison, and its memory is wiped on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of plaintext.
    pub fn new(plaintext: Vec<u8>) -> Self {
        Self(Zeroizing::new(plaintext))
    }

    /// The plaintext. Every call is a place to look at in a review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The plaintext as a message carries it, wiped when the last part of it is dropped.
    pub fn into_bytes(self) -> Bytes {
        struct Wiped(Secret);
        impl AsRef<[u8]> for Wiped {
            fn as_ref(&self) -> &[u8] {
                self.0.expose()
            }
        }
        Bytes::from_owner(Wiped(self))
    }

    /// The plaintext as text, if it is UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<String> for Secret {
    fn from(plaintext: String) -> Self {
        Self::new(plaintext.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_a_secret() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert_eq!(secret.expose_text(), Some("hunter2"));
        let place = secret.expose().as_ptr();
        let carried = secret.into_bytes();
        assert_eq!((&carried[..], carried.as_ptr()), (&b"hunter2"[..], place), "no copy is left behind");
    }
}
