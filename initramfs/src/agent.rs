//! Builds the agent: static, for any x86-64 Linux, and the same bytes wherever the source tree lies.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use drophammer_protocol::ticket::INSTALLED_AGENT_PATH;

const TARGET: &str = "x86_64-unknown-linux-musl";
const PACKAGE: &str = "drophammer-agent";
/// What is measured in place of an agent, made of its code, as it is made.
const BENCH: &str = "install-bench";

/// Names that stand for this machine's directories in the binary.
const SOURCE_NAME: &str = "/drophammer";
const CARGO_NAME: &str = "/cargo";

/// The source tree: `$DROPHAMMER_SOURCE`, or where this program was compiled.
pub fn repository() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = match env::var_os("DROPHAMMER_SOURCE") {
        Some(path) => PathBuf::from(path),
        None => here.parent().unwrap_or(here).to_owned(),
    };
    ensure!(
        path.join("agent/Cargo.toml").is_file(),
        "the source of the agent isn't in {}: name the source tree in DROPHAMMER_SOURCE, or name a built agent",
        path.display()
    );
    Ok(path)
}

/// The agent of the source tree that this program came from, or else that of the package that it came with.
pub(crate) fn agent() -> Result<PathBuf> {
    match repository() {
        Ok(repository) => build_agent(&repository),
        Err(_) if Path::new(INSTALLED_AGENT_PATH).is_file() => Ok(INSTALLED_AGENT_PATH.into()),
        Err(why) => Err(why),
    }
}

/// Builds the agent from the source tree `repo` and returns the binary. What is fresh is not built again.
pub fn build_agent(repo: &Path) -> Result<PathBuf> {
    build(repo, PACKAGE, &[])
}

/// The same for the program that the benchmarks of installations run.
pub fn build_install_bench(repo: &Path) -> Result<PathBuf> {
    build(repo, BENCH, &["--features", "bench"])
}

/// It works in a target directory of its own: the lock of the usual one may be held by the very cargo that runs us.
fn build(repo: &Path, binary: &str, more: &[&str]) -> Result<PathBuf> {
    let repo = repo.canonicalize().with_context(|| format!("finding the source tree {}", repo.display()))?;
    require_target()?;
    require_musl_gcc()?;
    let target_dir = repo.join("target/agent");
    let flags = flags(&repo, &cargo_home()?)?;
    tracing::info!("building {binary} for {TARGET}");

    let mut cargo = Command::new(tool("CARGO", "cargo"));
    cargo
        .current_dir(&repo)
        .args(["build", "--locked", "--release", "--target", TARGET, "--package", PACKAGE, "--bin", binary])
        .args(more)
        .stdin(Stdio::null())
        // Our own standard output belongs to the caller's results.
        .stdout(Stdio::null());
    for (name, _) in env::vars_os().filter(|(name, _)| disturbs(name)) {
        cargo.env_remove(name);
    }
    cargo
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.rust)
        .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
        .env("CFLAGS_x86_64_unknown_linux_musl", flags.c);
    let status = cargo.status().map_err(without_rust).context("running cargo")?;
    ensure!(status.success(), "building {binary} failed ({status}): the compiler's own words are above");

    let built = target_dir.join(TARGET).join("release").join(binary);
    ensure!(built.is_file(), "cargo says it built {binary}, but {} isn't there", built.display());
    Ok(built)
}

struct Flags {
    rust: OsString,
    c: OsString,
}

/// Compilers write the paths of source files into binaries; these flags give them names that are the same everywhere.
fn flags(repo: &Path, cargo_home: &Path) -> Result<Flags> {
    let (repo, cargo) = (plain(repo)?, plain(cargo_home)?);
    // Later mappings win, so a cargo home inside the source tree keeps its own name.
    let remap = |from: &str, to: &str| format!("--remap-path-prefix={from}={to}");
    let rust = [remap(repo, SOURCE_NAME), remap(cargo, CARGO_NAME)].join("\x1f");
    let c = format!("-ffile-prefix-map={repo}={SOURCE_NAME} -ffile-prefix-map={cargo}={CARGO_NAME}");
    Ok(Flags { rust: rust.into(), c: c.into() })
}

fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().filter(|text| !text.contains(['=', '\x1f']) && !text.contains(char::is_whitespace));
    text.with_context(|| format!("{} cannot be told to compilers: use a path without blanks or '='", path.display()))
}

/// Whether a variable of the environment would change the binary, or have it built again: an outer cargo describes the
/// package that it runs, and ring's build script starts over whenever that description is another.
fn disturbs(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    let whole =
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET", "SOURCE_DATE_EPOCH"];
    let starts = [
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CFLAGS",
        "HOST_CFLAGS",
        "TARGET_CFLAGS",
        "ZSTD_SYS_",
        "CRATE_CC_",
    ];
    whole.contains(&&*name) || starts.iter().any(|start| name.starts_with(start))
}

fn require_target() -> Result<()> {
    let output = Command::new(tool("RUSTC", "rustc"))
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(without_rust)
        .context("running rustc")?;
    let libraries = String::from_utf8_lossy(&output.stdout);
    let installed = output.status.success() && Path::new(libraries.trim()).is_dir();
    ensure!(installed, "Rust's standard library for {TARGET} isn't installed: run `rustup target add {TARGET}`");
    Ok(())
}

fn require_musl_gcc() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join("musl-gcc").is_file()) {
        return Ok(());
    }
    bail!("musl-gcc isn't installed, which the agent's C code needs: run `apt-get install musl-tools`")
}

/// Where cargo keeps the sources of crates.
fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let home = home.context("finding cargo's directory: set HOME or CARGO_HOME")?;
    Ok(home.canonicalize().unwrap_or(home))
}

fn without_rust(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        anyhow::anyhow!(
            "Rust isn't installed, so the agent can't be built: install it with rustup, or name a built agent"
        )
    } else {
        error.into()
    }
}

/// The very program that the cargo above us uses, if there is one.
fn tool(variable: &str, name: &str) -> OsString {
    env::var_os(variable).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_this_machine_get_names() {
        let flags = flags(Path::new("/home/x/src"), Path::new("/home/x/.cargo")).expect("plain paths");
        assert_eq!(
            flags.rust,
            "--remap-path-prefix=/home/x/src=/drophammer\x1f--remap-path-prefix=/home/x/.cargo=/cargo"
        );
        assert_eq!(flags.c, "-ffile-prefix-map=/home/x/src=/drophammer -ffile-prefix-map=/home/x/.cargo=/cargo");
        for odd in ["/home/x y", "/a=b", "/a\x1fb"] {
            assert!(super::flags(Path::new(odd), Path::new("/c")).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn only_what_changes_the_binary_is_kept_from_the_build() {
        for (name, expected) in [
            ("RUSTFLAGS", true),
            ("CARGO_PROFILE_RELEASE_LTO", true),
            ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", true),
            ("CFLAGS", true),
            ("PATH", false),
            ("CARGO_HOME", false),
            ("CARGO_NET_OFFLINE", false),
            ("RUSTUP_TOOLCHAIN", false),
        ] {
            assert_eq!(disturbs(name.as_ref()), expected, "{name}");
        }
    }

    #[test]
    fn the_source_tree_is_found() {
        let found = repository().expect("this very tree");
        assert!(found.join("initramfs/src/agent.rs").is_file());
    }
}
