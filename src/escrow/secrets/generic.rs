//! Secrets without groups: any text, and binary values as base64.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::FIELD;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

/// Longest generic secret, in bytes.
pub const GENERIC_MAX_BYTES: usize = 4_096;
/// Longest TPM owner authorisation value, in bytes: the largest digest of a TPM 2.0 (SHA-512). A TPM 1.2 has 20.
pub const TPM_OWNER_MAX_BYTES: usize = 64;

/// The text as it is. Tabs and line ends are part of it (a PEM block is a secret too), other control characters
/// are not: nobody can read them to a user, and a terminal obeys them.
pub(super) fn canonical(text: &str) -> Result<Secret, Invalid> {
    if text.len() > GENERIC_MAX_BYTES {
        return Err(Invalid::new(FIELD, format!("at most {GENERIC_MAX_BYTES} bytes, not {}", text.len())));
    }
    let forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if let Some(position) = text.chars().position(forbidden) {
        let fault = format!("text without control characters: character {} is one", position + 1);
        return Err(Invalid::new(FIELD, fault));
    }
    Ok(Secret::new(text.as_bytes().to_vec()))
}

/// Base64 (RFC 4648 §4, padded) of 1 to `max` bytes; white space and line ends in it are dropped.
pub(super) fn canonical_base64(text: &str, max: usize) -> Result<Secret, Invalid> {
    let invalid = |fault: &str| Invalid::new(FIELD, format!("base64 of 1 to {max} bytes: {fault}"));
    let alphabet =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=') || c.is_ascii_whitespace();
    if let Some(position) = text.chars().position(|c| !alphabet(c)) {
        return Err(invalid(&format!("character {} is none of its characters", position + 1)));
    }
    let mut plain = Vec::with_capacity(text.len());
    plain.extend(text.bytes().filter(|c| !c.is_ascii_whitespace()));
    let plain = Secret::new(plain);

    // The decoder reads blocks that were padded one by one; the same bytes would then have several spellings.
    if plain.expose_text().is_some_and(|text| text.trim_end_matches('=').contains('=')) {
        return Err(invalid("there is padding before its end"));
    }
    let room =
        BASE64.decode_len(plain.expose().len()).map_err(|_| invalid("its length is not a multiple of 4"))?;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let length = BASE64.decode_mut(plain.expose(), &mut bytes).map_err(|partial| {
        invalid(&format!(
            "its padding or last character is wrong, at character {}",
            partial.error.position + 1
        ))
    })?;
    if !(1..=max).contains(&length) {
        return Err(invalid(&format!("it has {length}")));
    }
    Ok(plain)
}
