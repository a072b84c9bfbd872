/// How a database is restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Everything belongs to the user who restores.
    pub no_owner: bool,
    /// No privileges are granted or revoked.
    pub no_acl: bool,
    /// No tablespaces are chosen.
    pub no_tablespaces: bool,
    /// `SET ROLE` first.
    pub role: Option<String>,
    /// Does not gather statistics afterwards.
    pub no_analyze: bool,
}

impl LoadOptions {
    /// As arguments of `pg_restore`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for (given, option) in [
            (self.no_owner, "--no-owner"),
            (self.no_acl, "--no-acl"),
            (self.no_tablespaces, "--no-tablespaces"),
        ] {
            if given {
                arguments.push(option.to_owned());
            }
        }
        arguments.extend(self.role.iter().map(|role| format!("--role={role}")));
        arguments
    }
}
