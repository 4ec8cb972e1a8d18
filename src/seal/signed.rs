//! What signed documents share: the bytes that are signed, and how they are written in JSON.

/// Most certificates in one document.
pub(super) const CERTIFICATES_MAX: usize = 8;

/// The bytes a signature is about: a label that no other kind of document uses, then field after field. Each is preceded
/// by its length in bytes (32 bits, big endian), so that no field can lend another one bytes; numbers are 64 bits, big
/// endian.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn about(domain: &[u8]) -> Self {
        let mut message = Self(Vec::with_capacity(2_048));
        message.put(domain);
        message
    }

    pub(super) fn put(&mut self, field: &[u8]) {
        // The longest field is a certificate, of some thousand bytes.
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(field);
    }

    /// How many there are, and each.
    pub(super) fn put_all(&mut self, fields: &[Vec<u8>]) {
        self.put(&(fields.len() as u64).to_be_bytes());
        fields.iter().for_each(|field| self.put(field));
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// [`Timestamp`] as RFC 3339 text, to the millisecond.
pub(super) mod rfc3339 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use crate::escrow::ids::Timestamp;

    pub(in crate::seal) fn serialize<S: Serializer>(
        at: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(in crate::seal) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = "a time as RFC 3339, such as 2030-01-31T12:00:00.000Z";
        let at = OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|error| D::Error::custom(format!("{text:?} is not {expected}: {error}")))?;
        let milliseconds = u64::try_from(at.unix_timestamp_nanos() / 1_000_000);
        milliseconds.map(Timestamp).map_err(|_| D::Error::custom(format!("{text:?} is before 1970")))
    }
}

/// Bytes as base64 (RFC 4648 §4).
pub(super) mod base64 {
    use data_encoding::BASE64;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::seal) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&BASE64.encode_display(value))
    }

    pub(in crate::seal) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// A list of bytes as a list of base64.
pub(super) mod base64_list {
    use data_encoding::BASE64;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::seal) fn serialize<S: Serializer>(
        value: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(value.iter().map(|bytes| BASE64.encode(bytes)))
    }

    pub(in crate::seal) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| BASE64.decode(text.as_bytes()).map_err(D::Error::custom)).collect()
    }
}

/// A hash of 32 bytes as lower-case hexadecimal.
pub(super) mod hash {
    use data_encoding::HEXLOWER;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::seal) fn serialize<S: Serializer>(
        value: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&HEXLOWER.encode_display(value))
    }

    pub(in crate::seal) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash has 64 hexadecimal digits"))
    }
}
