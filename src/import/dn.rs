//! The distinguished names of a recovery object of Active Directory, `CN=<time>{<key id>},CN=<computer>,…`, and of the
//! computer that it lies under.

use uuid::Uuid;

use crate::escrow::ids::Invalid;

/// The field that errors about the name have.
const FIELD: &str = "dn";

/// What the name of a recovery object says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecoveryName {
    /// The key.
    pub(super) key_id: Uuid,
    /// The common name of the computer it lies under.
    pub(super) computer: String,
}

impl RecoveryName {
    pub(super) fn parse(dn: &str) -> Result<Self, Invalid> {
        let mut names = relative_names(dn, 2)?.into_iter();
        let object = names.next().and_then(common_name);
        // Windows names it so: the time of creation, and the id of the key in braces.
        let key_id = object.as_deref().and_then(|name| {
            let (_, id) = name.strip_suffix('}')?.rsplit_once('{')?;
            Uuid::try_parse(id).ok()
        });
        let key_id = key_id.ok_or_else(|| {
            Invalid::new(FIELD, "to begin with CN=<time>{<key id>}, as recovery information is named")
        })?;
        let computer = names.next().and_then(common_name);
        let computer =
            computer.ok_or_else(|| Invalid::new(FIELD, "CN=<computer> behind the name of the key"))?;
        Ok(Self { key_id, computer })
    }
}

/// What the name of a computer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ComputerName {
    /// Its common name.
    pub(super) computer: String,
    /// The domain it is in: `corp.example` for `DC=corp,DC=example`. Empty if it does not say.
    pub(super) domain: String,
}

impl ComputerName {
    pub(super) fn parse(dn: &str) -> Result<Self, Invalid> {
        let mut names = relative_names(dn, usize::MAX)?.into_iter();
        let computer = names.next().and_then(common_name);
        let computer = computer.ok_or_else(|| Invalid::new(FIELD, "to begin with CN=<computer>"))?;
        let domain: Vec<String> = names.filter_map(|name| value_of("dc", &name)).collect();
        Ok(Self { computer, domain: domain.join(".") })
    }
}

/// The value of `CN=value`.
fn common_name(relative_name: String) -> Option<String> {
    value_of("cn", &relative_name)
}

/// The value of `kind=value`.
fn value_of(kind: &str, relative_name: &str) -> Option<String> {
    let (found, value) = relative_name.split_once('=')?;
    found.trim().eq_ignore_ascii_case(kind).then(|| value.trim().to_owned())
}

/// The parts of a name between its commas, unescaped (RFC 4514 §2.4): the first `needed` of them.
fn relative_names(dn: &str, needed: usize) -> Result<Vec<String>, Invalid> {
    let malformed =
        || Invalid::new(FIELD, r"a distinguished name, with \ before a special character or two digits");
    let mut names = Vec::new();
    let mut name = Vec::new();
    let mut bytes = dn.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' => {
                names.push(String::from_utf8(std::mem::take(&mut name)).map_err(|_| malformed())?);
                if names.len() == needed {
                    return Ok(names);
                }
            }
            b'\\' => {
                let escaped = bytes.next().ok_or_else(malformed)?;
                let byte = match digit(escaped) {
                    Some(high) => 16 * high + bytes.next().and_then(digit).ok_or_else(malformed)?,
                    None => escaped,
                };
                name.push(byte);
            }
            byte => name.push(byte),
        }
    }
    names.push(String::from_utf8(name).map_err(|_| malformed())?);
    Ok(names)
}

fn digit(byte: u8) -> Option<u8> {
    // A hexadecimal digit is below 16.
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "62B0C0E9-9B6F-4D4F-8F4A-1C2D3E4F5A6B";

    #[test]
    fn a_name_says_which_key_of_which_computer() {
        let id: Uuid = ID.parse().unwrap();
        for (dn, computer) in [
            (
                format!("CN=2026-01-31T10:15:30-00:00{{{ID}}},CN=PC-0001,OU=Laptops,DC=corp,DC=example"),
                "PC-0001",
            ),
            (format!(r"CN=2026-01-31T10:15:30\+01:00{{{ID}}},CN=PC-0001,DC=corp"), "PC-0001"),
            (format!(r"cn=2026-01-31T10\3A15\3a30-00:00{{{ID}}}, cn=PC\2D1,DC=corp"), "PC-1"),
            (format!(r"CN={{{ID}}},CN=Lab\, old"), "Lab, old"),
            (format!(r"CN={{{ID}}},CN=B\C3\BCro"), "Büro"),
        ] {
            let name = RecoveryName::parse(&dn).unwrap();
            assert_eq!((name.key_id, name.computer.as_str()), (id, computer), "{dn}");
        }
    }

    #[test]
    fn a_name_of_a_computer_says_which_and_in_which_domain() {
        for (dn, computer, domain) in [
            ("CN=PC-0001,OU=Laptops,DC=corp,DC=example", "PC-0001", "corp.example"),
            (r"cn=Lab\, old, ou=a\2Cb, dc=corp , DC=example", "Lab, old", "corp.example"),
            ("CN=PC-0001", "PC-0001", ""),
        ] {
            let name = ComputerName::parse(dn).unwrap();
            assert_eq!((name.computer.as_str(), name.domain.as_str()), (computer, domain), "{dn}");
        }
        for dn in ["", "OU=Laptops,DC=corp", r"CN=PC,DC=\2"] {
            assert_eq!(ComputerName::parse(dn).unwrap_err().field, "dn", "{dn}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_recovery_object_is_refused() {
        for dn in [
            String::new(),
            "CN=PC-0001,OU=Laptops,DC=corp".to_owned(),
            format!("CN=2026-01-31T10:15:30-00:00{{{ID}}}"),
            format!("CN=2026-01-31T10:15:30-00:00{{{ID}}},OU=Laptops"),
            format!("OU=2026-01-31T10:15:30-00:00{{{ID}}},CN=PC"),
            format!("CN=2026-01-31T10:15:30-00:00{{{ID}}}x,CN=PC"),
            "CN=2026-01-31T10:15:30-00:00{not-an-id},CN=PC".to_owned(),
            format!(r"CN={{{ID}}},CN=PC\"),
            format!(r"CN={{{ID}}},CN=PC\2"),
            format!(r"CN={{{ID}}},CN=PC\FF,DC=x"),
        ] {
            let invalid = RecoveryName::parse(&dn).unwrap_err();
            assert_eq!(invalid.field, "dn", "{dn}");
        }
    }
}
