//! The people of an installed system: passwd(5), shadow(5), group(5), gshadow(5), sudoers(5) and authorized_keys.
//!
//! Lines that aren't about them stay as they are, to the byte. Done twice, it's done once.

use std::collections::BTreeSet;

use anyhow::Context;
use drophammer_protocol::system::{Sudo, System, User};

use super::super::root::Root;

const PASSWD: &str = "/etc/passwd";
const SHADOW: &str = "/etc/shadow";
const GROUP: &str = "/etc/group";
const GSHADOW: &str = "/etc/gshadow";
const SUDOERS: &str = "/etc/sudoers.d/drophammer";

/// Where useradd(8) looks for free numbers.
const PEOPLE: std::ops::Range<u32> = 1000..60_000;
const SYSTEM_GROUPS: std::ops::Range<u32> = 100..1000;

/// No password is right, and unlike `!` it doesn't lock the account: an sshd without PAM lets nobody into a locked one.
const NO_PASSWORD: &str = "*";

/// The texts of the four files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    passwd: String,
    shadow: String,
    group: String,
    /// Not every system has one.
    gshadow: Option<String>,
}

/// Where somebody's files go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    /// It wasn't in the image.
    fresh: bool,
}

/// Accounts, groups, keys and sudo.
pub(super) fn configure(root: &Root, system: &System) -> anyhow::Result<()> {
    root_keys(root, system)?;
    users(root, system)
}

/// The same for an image whose installer has seen to root.
pub(super) fn users(root: &Root, system: &System) -> anyhow::Result<()> {
    if system.users.is_empty() {
        return Ok(());
    }
    let text = |path: &str| Ok::<_, anyhow::Error>(root.text(path)?.unwrap_or_default());
    let before = Files {
        passwd: root.text(PASSWD)?.context("the image has no /etc/passwd, so it has no room for users")?,
        shadow: text(SHADOW)?,
        group: text(GROUP)?,
        gshadow: root.text(GSHADOW)?,
    };
    let shell = if root.exists("/bin/bash")? { "/bin/bash" } else { "/bin/sh" };
    let (after, accounts) = with_users(&before, &system.users, shell)?;
    root.replace_text(PASSWD, 0o644, &after.passwd)?;
    root.replace_text(GROUP, 0o644, &after.group)?;
    root.replace_text(SHADOW, 0o600, &after.shadow)?;
    if let Some(gshadow) = &after.gshadow {
        root.replace_text(GSHADOW, 0o600, gshadow)?;
    }
    for (account, user) in accounts.iter().zip(&system.users) {
        let files = || home(root, account, user);
        files().with_context(|| format!("setting up the account {}", account.name))?;
    }
    if let Some(text) = sudoers(&system.users) {
        anyhow::ensure!(
            root.exists("/etc/sudoers")?,
            "the image has no sudo, so nobody can be given it; use an image with sudo, or leave `sudo` out"
        );
        root.put_text(SUDOERS, 0o440, &text)?;
    }
    Ok(())
}

/// The image's own authorized keys, if it brought any, were its builder's, not the tenant's.
fn root_keys(root: &Root, system: &System) -> anyhow::Result<()> {
    let named = system.users.iter().filter(|user| user.name == "root").flat_map(|user| &user.ssh_keys);
    root.make_directory("/root/.ssh", 0o700)?;
    root.put_text("/root/.ssh/authorized_keys", 0o600, &authorized_keys(system.ssh_keys.iter().chain(named)))
}

fn home(root: &Root, account: &Account, user: &User) -> anyhow::Result<()> {
    let Account { home, uid, gid, fresh, .. } = account;
    if *fresh {
        let skeleton = if root.exists(home)? { Vec::new() } else { root.names("/etc/skel")? };
        root.make_directory(home, 0o700)?;
        root.chown(home, *uid, *gid)?;
        for name in skeleton.iter().filter_map(|name| name.to_str()) {
            let Ok(Some(file)) = root.file(&format!("/etc/skel/{name}")) else { continue };
            let path = format!("{home}/{name}");
            root.put(&path, 0o644, file)?;
            root.chown(&path, *uid, *gid)?;
        }
    }
    if user.ssh_keys.is_empty() || account.name == "root" {
        return Ok(());
    }
    anyhow::ensure!(home.starts_with('/') && home != "/" && root.exists(home)?, "it has no home for SSH keys");
    let (folder, keys) = (format!("{home}/.ssh"), format!("{home}/.ssh/authorized_keys"));
    root.make_directory(&folder, 0o700)?;
    root.put_text(&keys, 0o600, &authorized_keys(&user.ssh_keys))?;
    root.chown(&folder, *uid, *gid)?;
    root.chown(&keys, *uid, *gid)
}

fn authorized_keys<'a>(keys: impl IntoIterator<Item = &'a String>) -> String {
    keys.into_iter().map(|key| format!("{}\n", key.trim())).collect()
}

fn sudoers(users: &[User]) -> Option<String> {
    let rules: Vec<String> = users
        .iter()
        .filter_map(|user| {
            Some(match user.sudo? {
                Sudo::Password => format!("{} ALL=(ALL:ALL) ALL\n", user.name),
                Sudo::NoPassword => format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name),
            })
        })
        .collect();
    (!rules.is_empty()).then(|| format!("# Written when this system was installed.\n{}", rules.concat()))
}

fn with_users(before: &Files, users: &[User], shell: &str) -> anyhow::Result<(Files, Vec<Account>)> {
    let mut passwd = Table::read(&before.passwd);
    let mut shadow = Table::read(&before.shadow);
    let mut group = Table::read(&before.group);
    let mut gshadow = before.gshadow.as_deref().map(Table::read);
    let mut accounts = Vec::new();
    for user in users {
        let name = &user.name;
        let known =
            passwd.find(name).map(|line| account(line).with_context(|| format!("{name} in the image's {PASSWD}")));
        let account = match known.transpose()? {
            Some(account) => account,
            None => {
                // A group of this name that the image has becomes theirs.
                let gid = match group.find(name) {
                    Some(line) => number(line, 2).with_context(|| format!("{name} in the image's {GROUP}"))?,
                    None => {
                        let gid = free(&[&passwd, &group], PEOPLE).context("no number is free for another account")?;
                        add_group(&mut group, gshadow.as_mut(), name, gid);
                        gid
                    }
                };
                let taken = passwd.numbers(2);
                let uid = if PEOPLE.contains(&gid) && !taken.contains(&gid) {
                    gid
                } else {
                    free(&[&passwd], PEOPLE).context("no number is free for another account")?
                };
                let home = format!("/home/{name}");
                passwd.push(vec![name, "x", &uid.to_string(), &gid.to_string(), "", &home, shell]);
                Account { name: name.clone(), uid, gid, home, fresh: true }
            }
        };
        let password = user.password.as_ref().map_or(NO_PASSWORD, |hash| hash.secret());
        match shadow.find_mut(name) {
            Some(line) => set(line, 1, password),
            // When it was last changed is left open: then it never is too old.
            None => shadow.push(vec![name, password, "", "0", "99999", "7", "", "", ""]),
        }
        // A password that stands here itself would count for more than the shadow.
        if let Some(line) = passwd.find_mut(name) {
            set(line, 1, "x");
        }
        for wanted in &user.groups {
            if group.find(wanted).is_none() {
                let gid = free(&[&group], SYSTEM_GROUPS).context("no number is free for another group")?;
                add_group(&mut group, gshadow.as_mut(), wanted, gid);
            }
            for table in [Some(&mut group), gshadow.as_mut()].into_iter().flatten() {
                if let Some(line) = table.find_mut(wanted) {
                    add_member(line, name);
                }
            }
        }
        accounts.push(account);
    }
    let after = Files {
        passwd: passwd.text(),
        shadow: shadow.text(),
        group: group.text(),
        gshadow: gshadow.map(|table| table.text()),
    };
    Ok((after, accounts))
}

fn account(line: &[String]) -> anyhow::Result<Account> {
    let field = |index: usize| line.get(index).cloned().unwrap_or_default();
    let (uid, gid) = (number(line, 2)?, number(line, 3)?);
    Ok(Account { name: field(0), uid, gid, home: field(5), fresh: false })
}

fn number(line: &[String], index: usize) -> anyhow::Result<u32> {
    line.get(index).and_then(|text| text.parse().ok()).context("it has no number")
}

fn add_group(group: &mut Table, gshadow: Option<&mut Table>, name: &str, gid: u32) {
    group.push(vec![name, "x", &gid.to_string(), ""]);
    if let Some(gshadow) = gshadow
        && gshadow.find(name).is_none()
    {
        gshadow.push(vec![name, "!", "", ""]);
    }
}

fn add_member(line: &mut Vec<String>, name: &str) {
    let members = line.get(3).cloned().unwrap_or_default();
    if !members.split(',').any(|member| member == name) {
        set(line, 3, &if members.is_empty() { name.to_owned() } else { format!("{members},{name}") });
    }
}

fn set(line: &mut Vec<String>, index: usize, value: &str) {
    if line.len() <= index {
        line.resize(index + 1, String::new());
    }
    if let Some(field) = line.get_mut(index) {
        value.clone_into(field);
    }
}

fn free(tables: &[&Table], among: std::ops::Range<u32>) -> Option<u32> {
    let taken: BTreeSet<u32> = tables.iter().flat_map(|table| table.numbers(2)).collect();
    among.into_iter().find(|number| !taken.contains(number))
}

/// A file of lines with fields that colons part. What isn't such a line (a comment, NIS's `+`) is kept too.
struct Table(Vec<Vec<String>>);

impl Table {
    fn read(text: &str) -> Self {
        // Not `lines`, which would take a carriage return away.
        Self(text.split_terminator('\n').map(|line| line.split(':').map(str::to_owned).collect()).collect())
    }

    fn text(&self) -> String {
        self.0.iter().map(|line| line.join(":") + "\n").collect()
    }

    fn find(&self, name: &str) -> Option<&Vec<String>> {
        self.0.iter().find(|line| line.len() > 1 && line.first().is_some_and(|first| first == name))
    }

    fn find_mut(&mut self, name: &str) -> Option<&mut Vec<String>> {
        self.0.iter_mut().find(|line| line.len() > 1 && line.first().is_some_and(|first| first == name))
    }

    fn numbers(&self, index: usize) -> BTreeSet<u32> {
        self.0.iter().filter_map(|line| line.get(index)?.parse().ok()).collect()
    }

    fn push(&mut self, fields: Vec<&str>) {
        // Before NIS's line, which ends what is looked up here.
        let end = self.0.iter().position(|line| line.first().is_some_and(|name| name.starts_with('+')));
        let line = fields.into_iter().map(str::to_owned).collect();
        self.0.insert(end.unwrap_or(self.0.len()), line);
    }
}

/// What an image has in its files, for a user `a` in the group `b`: nothing of others is changed, and once is enough.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let user = User { name: "a".into(), groups: vec!["b".into()], ..User::default() };
    let before = Files { passwd: text.into(), shadow: text.into(), group: text.into(), gshadow: Some(text.into()) };
    let Ok((after, accounts)) = with_users(&before, std::slice::from_ref(&user), "/bin/sh") else { return };
    assert_eq!(accounts.len(), 1);
    let others = |text: &str| {
        let ours = |line: &&str| !(line.starts_with("a:") || line.starts_with("b:"));
        text.split_terminator('\n').filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(others(&after.passwd), others(text));
    assert_eq!(others(&after.shadow), others(text));
    let (again, _) = with_users(&after, &[user], "/bin/sh").expect("it's there now");
    assert_eq!(again, after);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    use drophammer_protocol::system::PasswordHash;

    use super::*;

    const HASH: &str = "$5$saltsalt$KvGFuXKTHlFN2YNq7ErIXpsUT9E8Ai5b9m7i9TFRpR9";
    const KEY: &str = "ssh-ed25519 AAAA a";

    fn debian() -> Files {
        Files {
            passwd: "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
                     debian:x:1000:1000:Debian:/home/debian:/bin/bash\n"
                .into(),
            shadow: "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\ndebian::19000:0:99999:7:::\n".into(),
            group: "root:x:0:\ndaemon:x:1:\nsudo:x:27:debian\nadm:x:4:\ndebian:x:1000:\n".into(),
            gshadow: Some("root:*::\ndaemon:*::\nsudo:*::debian\nadm:*::\ndebian:!::\n".into()),
        }
    }

    fn user(name: &str) -> User {
        User { name: name.into(), ..User::default() }
    }

    #[test]
    fn users_are_added_and_changed() {
        let line = |text: &str, name: &str| {
            text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or("nobody").to_owned()
        };
        let with = |users: &[User]| with_users(&debian(), users, "/bin/bash").expect("done");
        for (name, user, want) in [
            (
                "a new one",
                user("ann"),
                ("ann:x:1001:1001::/home/ann:/bin/bash", "ann:*::0:99999:7:::", "ann:x:1001:", "ann:!::"),
            ),
            (
                "with a password",
                User { password: Some(PasswordHash::new("$5$x")), ..user("ann") },
                ("ann:x:1001:1001::/home/ann:/bin/bash", "ann:$5$x::0:99999:7:::", "ann:x:1001:", "ann:!::"),
            ),
            (
                "one whose group is there",
                user("adm"),
                ("adm:x:1001:4::/home/adm:/bin/bash", "adm:*::0:99999:7:::", "adm:x:4:", "adm:*::"),
            ),
            (
                "one of the image's, who had an empty password",
                user("debian"),
                (
                    "debian:x:1000:1000:Debian:/home/debian:/bin/bash",
                    "debian:*:19000:0:99999:7:::",
                    "debian:x:1000:",
                    "debian:!::",
                ),
            ),
        ] {
            let (after, accounts) = with(std::slice::from_ref(&user));
            let gshadow = after.gshadow.as_deref().unwrap_or_default();
            let files = [&after.passwd, &after.shadow, &after.group, gshadow];
            let got = files.map(|text| line(text, &user.name));
            assert_eq!(got, [want.0, want.1, want.2, want.3], "{name}");
            assert_eq!(accounts.len(), 1, "{name}");
            assert_eq!(with_users(&after, &[user], "/bin/bash").expect("again").0, after, "{name}: twice is once");
        }
        let groups = User { groups: vec!["sudo".into(), "docker".into(), "sudo".into()], ..user("ann") };
        let (after, _) = with(&[groups]);
        assert_eq!(line(&after.group, "sudo"), "sudo:x:27:debian,ann");
        assert_eq!(line(&after.group, "docker"), "docker:x:100:ann");
        assert_eq!(line(after.gshadow.as_deref().expect("kept"), "sudo"), "sudo:*::debian,ann");
    }

    #[test]
    fn lines_of_others_stay() {
        let odd = Files { passwd: "# ours\r\nroot:x:0:0::/root:/bin/sh\n+::::::\n".into(), ..Files::default() };
        let (after, _) = with_users(&odd, &[user("ann")], "/bin/sh").expect("done");
        assert_eq!(after.passwd, "# ours\r\nroot:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n+::::::\n");
        assert_eq!(after.gshadow, None);
        let broken = Files { passwd: "ann:x:many:0::/:/bin/sh\n".into(), ..Files::default() };
        let why = with_users(&broken, &[user("ann")], "/bin/sh").expect_err("no number");
        assert!(format!("{why:#}").contains("ann in the image's /etc/passwd"), "{why:#}");
    }

    /// What pwck(8), grpck(8), visudo(8) and the file system think of it.
    #[test]
    fn the_systems_own_programs_find_nothing_wrong() {
        let base = tempfile::tempdir().expect("temporary directory");
        let at = |path: &str| base.path().join(path.trim_start_matches('/'));
        for (path, text, mode) in [
            (PASSWD, debian().passwd, 0o644),
            (SHADOW, debian().shadow, 0o640),
            (GROUP, debian().group, 0o644),
            (GSHADOW, debian().gshadow.expect("one"), 0o640),
            ("/etc/sudoers", "@includedir /etc/sudoers.d\n".into(), 0o440),
            ("/etc/skel/.profile", "umask 022\n".into(), 0o644),
        ] {
            std::fs::create_dir_all(at(path).parent().expect("below")).expect("made");
            std::fs::write(at(path), text).expect("written");
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(mode)).expect("mode");
        }
        for home in ["/root", "/usr/sbin", "/home/debian", "/bin"] {
            std::fs::create_dir_all(at(home)).expect("made");
        }
        for program in ["/bin/bash", "/usr/sbin/nologin"] {
            std::fs::write(at(program), "").expect("written");
        }
        if std::os::unix::fs::chown(at(SHADOW), Some(0), Some(42)).is_err() {
            println!("skipped: files can only be given to any owner by root");
            return;
        }
        let ann = User {
            password: Some(PasswordHash::new(HASH)),
            ssh_keys: vec![KEY.into()],
            groups: vec!["adm".into(), "docker".into()],
            sudo: Some(Sudo::Password),
            ..user("ann")
        };
        let bob = User { sudo: Some(Sudo::NoPassword), ..user("bob") };
        let system = System { users: vec![ann, bob, user("debian")], ..System::default() };
        let root = Root::open(base.path()).expect("opened");
        for round in ["once", "twice"] {
            configure(&root, &system).expect(round);
        }

        let passes = |program: &str, args: &[&str]| {
            let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
            assert!(done.status.success(), "{program}: {done:?}");
        };
        // They look at what the files name, so that has to be where the files are.
        let path = base.path().to_str().expect("text");
        passes("pwck", &["-r", "-q", "-R", path]);
        passes("grpck", &["-r", "-R", path]);
        passes("visudo", &["-c", "-f", at(SUDOERS).to_str().expect("text")]);

        let owner =
            |path: &str| std::fs::metadata(at(path)).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).expect(path);
        assert_eq!(owner(SHADOW), (0, 42, 0o640), "as the image has it");
        assert_eq!(owner("/home/ann"), (1001, 1001, 0o700));
        assert_eq!(owner("/home/ann/.profile"), (1001, 1001, 0o644));
        assert_eq!(owner("/home/ann/.ssh"), (1001, 1001, 0o700));
        assert_eq!(owner("/home/ann/.ssh/authorized_keys"), (1001, 1001, 0o600));
        assert_eq!(owner(SUDOERS), (0, 0, 0o440));
        assert!(!at("/home/bob/.ssh").exists());
    }
}
