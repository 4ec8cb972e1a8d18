//! The common shape of recovery secrets made for people: groups of equal length, with hyphens or white space
//! between them, or nothing.

use zeroize::Zeroizing;

use super::FIELD;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

/// How a kind of secret is grouped.
pub(super) struct Shape {
    /// How many groups.
    pub groups: usize,
    /// Characters in each.
    pub group_length: usize,
    /// What a character is called in errors.
    pub characters: &'static str,
    /// The canonical form of an accepted character, `None` for all others.
    pub character: fn(u8) -> Option<u8>,
}

impl Shape {
    /// The canonical characters of `text`, without separators: exactly `groups * group_length` of them.
    ///
    /// # Errors
    /// [`Invalid`] naming the first group, and in it the first character, that departs from the shape.
    pub(super) fn parse(&self, text: &str) -> Result<Zeroizing<Vec<u8>>, Invalid> {
        // Room for everything at once: a buffer that grows leaves unwiped copies behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(self.groups * self.group_length));
        let separator = |c: char| c == '-' || c.is_ascii_whitespace();
        for run in text.split(separator).filter(|run| !run.is_empty()) {
            let before = plain.len() / self.group_length;
            self.check_length(before, run.chars().count())?;
            for (offset, c) in run.chars().enumerate() {
                let canonical = u8::try_from(c).ok().and_then(self.character);
                let (group, position) = (before + offset / self.group_length, offset % self.group_length);
                plain.push(canonical.ok_or_else(|| self.fault(group, position))?);
            }
        }
        if plain.len() < self.groups * self.group_length {
            let found = plain.len() / self.group_length;
            return Err(self.invalid(&format!("only {found} groups were given")));
        }
        Ok(plain)
    }

    /// `plain` with a hyphen between groups.
    pub(super) fn join(&self, plain: &[u8]) -> Secret {
        let mut text = Vec::with_capacity(self.groups * (self.group_length + 1) - 1);
        for (index, group) in plain.chunks(self.group_length).enumerate() {
            if index > 0 {
                text.push(b'-');
            }
            text.extend_from_slice(group);
        }
        Secret::new(text)
    }

    /// An error about this shape.
    pub(super) fn invalid(&self, fault: &str) -> Invalid {
        let Self { groups, group_length, characters, .. } = self;
        Invalid::new(FIELD, format!("{groups} groups of {group_length} {characters}: {fault}"))
    }

    /// A run between separators must be whole groups, and no more than are left.
    fn check_length(&self, before: usize, length: usize) -> Result<(), Invalid> {
        let (whole, rest) = (length / self.group_length, length % self.group_length);
        if rest > 0 {
            // One group that is too long is more likely than a group and a part without a separator between.
            let (group, found) = if whole <= 1 { (before, length) } else { (before + whole, rest) };
            return Err(self.invalid(&format!("group {} has {found}", group + 1)));
        }
        if before + whole > self.groups {
            return Err(self.invalid("more groups were given"));
        }
        Ok(())
    }

    fn fault(&self, group: usize, position: usize) -> Invalid {
        self.invalid(&format!("group {}, character {} is none of them", group + 1, position + 1))
    }
}
