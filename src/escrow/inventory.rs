//! What others say of a machine: a directory, or a list of what was bought. It gives a machine a name before its device has
//! said anything, and nothing more. It is no report: it says nothing of volumes, moves no last contact, and takes the place
//! of nothing that a device said of itself.

use serde::{Deserialize, Serialize};

use super::compliance::MachineReport;
use super::compliance::facts::{TEXT_MAX_BYTES, USERS_MAX, check_length, check_text};
use super::compliance::words::MachineType;
use super::ids::{Invalid, MachineId, UserName};

/// What a machine is and what it is called. A text that is empty says nothing, nor does [`MachineType::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The domain it belongs to.
    pub domain: String,
    /// Its name, as its users know it.
    pub name: String,
    /// Who made it.
    pub make: String,
    /// Which model it is.
    pub model: String,
    /// What sort of machine it is.
    pub machine_type: MachineType,
    /// Its operating system and the version of it.
    pub os: String,
}

impl Default for Description {
    fn default() -> Self {
        let [domain, name, make, model, os] = [const { String::new() }; 5];
        Self { domain, name, make, model, machine_type: MachineType::Unknown, os }
    }
}

impl Description {
    /// What `report` says.
    pub fn of(report: &MachineReport) -> Self {
        let MachineReport { domain, name, make, model, machine_type, os, .. } = report.clone();
        Self { domain, name, make, model, machine_type, os }
    }

    /// The same, and where it says nothing, what `other` says.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let first = |one: String, other: &String| if one.is_empty() { other.clone() } else { one };
        let is_known = self.machine_type != MachineType::Unknown;
        Self {
            domain: first(self.domain, &other.domain),
            name: first(self.name, &other.name),
            make: first(self.make, &other.make),
            model: first(self.model, &other.model),
            machine_type: if is_known { self.machine_type } else { other.machine_type },
            os: first(self.os, &other.os),
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        let Self { domain, name, make, model, machine_type: _, os } = self;
        let texts = [("domain", domain), ("name", name), ("make", make), ("model", model), ("os", os)];
        texts.into_iter().try_for_each(|(field, text)| check_text(field, text, TEXT_MAX_BYTES))
    }
}

/// A machine as an importer knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedMachine {
    /// The machine.
    pub machine: MachineId,
    /// What it is.
    pub description: Description,
    /// Its users, the one seen last at the end.
    pub users: Vec<UserName>,
}

impl ImportedMachine {
    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] naming the field.
    pub fn check(&self) -> Result<(), Invalid> {
        self.description.check()?;
        check_length("users", &self.users, USERS_MAX)
    }
}

/// What is kept of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryRecord {
    /// The machine.
    pub machine: MachineId,
    /// What imports say it is: of each field the newest that says something.
    pub description: Description,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_takes_the_place_of_nothing() {
        let kept = Description {
            domain: "CORP".to_owned(),
            name: "pc-1".to_owned(),
            machine_type: MachineType::Portable,
            ..Description::default()
        };
        assert_eq!(Description::default().or(&kept), kept);
        assert_eq!(kept.clone().or(&Description::default()), kept);
        let newer = Description {
            name: "pc-2".to_owned(),
            model: "Notebook".to_owned(),
            machine_type: MachineType::Desktop,
            ..Description::default()
        };
        let expected = Description { domain: "CORP".to_owned(), ..newer.clone() };
        assert_eq!(newer.or(&kept), expected);
    }
}
