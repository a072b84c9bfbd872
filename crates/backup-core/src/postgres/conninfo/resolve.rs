//! Completes what a connection string leaves open: service, environment, defaults, in this order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::parse::{Values, set};
use super::{ConnInfo, Host, KEYWORDS};
use crate::error::{Error, ErrorKind, Result};

/// What libpq looks at beside the connection string.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Environment variables; only those that begin with `PG` count.
    pub variables: BTreeMap<String, String>,
    /// The home folder, for `.pgpass`, `.pg_service.conf` and `.postgresql/`.
    pub home: Option<PathBuf>,
    /// Name of the user of the operating system.
    pub user: Option<String>,
}

impl Environment {
    /// That of this process. Where a service has no `HOME`, it is that of `/etc/passwd`.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| name.starts_with("PG") && !value.is_empty())
            .collect();
        let known = account();
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let home = home.or_else(|| known.as_ref().map(|(_, home)| home.clone()));
        let user = known.map(|(name, _)| name).or_else(|| std::env::var("USER").ok());
        Self { variables, home, user }
    }
}

/// Name and home of this process's user, where they stand in `/etc/passwd`.
fn account() -> Option<(String, PathBuf)> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, _, _, home, ..] = fields[..] else { return None };
        (id == uid).then(|| (name.to_owned(), PathBuf::from(home)))
    })
}

pub(super) fn resolve(mut values: Values, environment: &Environment) -> Result<ConnInfo> {
    let variable = |name: &str| environment.variables.get(name).map(String::as_str);
    let service = values.get("service").cloned().or_else(|| variable("PGSERVICE").map(str::to_owned));
    if let Some(service) = service {
        add_service(&mut values, &service, environment)?;
    }
    for keyword in KEYWORDS {
        if let Some(value) = keyword.variable.and_then(variable)
            && !values.contains_key(keyword.name)
        {
            set(&mut values, keyword.name, value.to_owned())?;
        }
    }
    values.retain(|_, value| !value.is_empty());
    if !values.contains_key("user") {
        let user = environment.user.clone().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "the name of the database user is not known")
                .with_hint("give user=… or set PGUSER")
        })?;
        values.insert("user", user);
    }
    if !values.contains_key("dbname") {
        let user = values["user"].clone();
        values.insert("dbname", user);
    }
    let hosts = hosts(&values)?;
    Ok(ConnInfo { values, hosts, home: environment.home.clone(), via: None })
}

fn hosts(values: &Values) -> Result<Vec<Host>> {
    let list = |name: &str| -> Vec<&str> {
        values.get(name).map(|v| v.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    let uneven = |what: &str, n: usize| {
        Err(Error::new(ErrorKind::Usage, format!("{n} {what} for {count} hosts"))
            .with_hint("give one, or one for each host"))
    };
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return uneven("addresses", addresses.len());
    }
    if ports.len() > 1 && ports.len() != count {
        return uneven("ports", ports.len());
    }
    (0..count)
        .map(|i| {
            let address = addresses.get(i).filter(|a| !a.is_empty()).map(|a| (*a).to_owned());
            let port = match ports.get(i).or_else(|| ports.last()).filter(|p| !p.is_empty()) {
                // In a URI that lacks its host, the password stands where a port belongs: it is not repeated.
                Some(port) => port.parse().ok().filter(|p| *p > 0).ok_or_else(|| {
                    Error::new(ErrorKind::Usage, "the port is not a number from 1 to 65535")
                        .with_hint("in a URI, write @ : and / of a password as %40 %3A and %2F")
                })?,
                None => 5432,
            };
            let name = match names.get(i).filter(|n| !n.is_empty()) {
                Some(name) => (*name).to_owned(),
                None => address.clone().unwrap_or_else(|| default_socket_folder(port)),
            };
            Ok(Host { name, address, port })
        })
        .collect()
}

/// Distributions differ in where the socket is: the folder where there is one wins.
fn default_socket_folder(port: u16) -> String {
    let folders = ["/var/run/postgresql", "/tmp"];
    let there = folders.iter().find(|f| Path::new(f).join(format!(".s.PGSQL.{port}")).exists());
    (*there.unwrap_or(&folders[0])).to_owned()
}

/// Adds what a service defines and the string does not (PostgreSQL documentation, "The Connection Service File").
fn add_service(values: &mut Values, service: &str, environment: &Environment) -> Result<()> {
    let variable = |name: &str| environment.variables.get(name);
    let own = variable("PGSERVICEFILE")
        .map(PathBuf::from)
        .or_else(|| environment.home.as_ref().map(|h| h.join(".pg_service.conf")));
    let folder =
        variable("PGSYSCONFDIR").map_or_else(|| PathBuf::from("/etc/postgresql-common"), PathBuf::from);
    for path in own.into_iter().chain([folder.join("pg_service.conf")]) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if let Some(found) = section(&text, service) {
            for (name, value) in found {
                if name == "service" {
                    let message = format!("{}: a service cannot name a service", path.display());
                    return Err(Error::new(ErrorKind::Config, message)
                        .with_hint("write the settings of the other service out"));
                }
                if !values.contains_key(name) {
                    set(values, name, value.to_owned()).map_err(|e| e.doing(path.display()))?;
                }
            }
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Config, format!("there is no service {service:?}"))
        .with_hint("define it in ~/.pg_service.conf, or in the file that PGSERVICEFILE names"))
}

fn section<'a>(text: &'a str, name: &str) -> Option<Vec<(&'a str, &'a str)>> {
    let mut found: Option<Vec<(&str, &str)>> = None;
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(heading) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            if found.is_some() {
                return found;
            }
            if heading == name {
                found = Some(Vec::new());
            }
        } else if let (Some(found), Some((name, value))) = (&mut found, line.split_once('=')) {
            found.push((name.trim(), value.trim()));
        }
    }
    found
}
