//! `drophammer image`: what image builders do.

mod publish;
mod show;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use drophammer_images::{BuildOptions, Forms, Hash, Import, PackOptions, Packed, Recipe, Stage};
use drophammer_protocol::api::{ImageSummary, ImportState};
use drophammer_protocol::layout::Amount;
use drophammer_protocol::manifest::{BootBy, Minimum};
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::words;

use self::show::{describe, list, list_store};
use crate::output;
use crate::server::Server;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a root file system from a recipe, as a tar.
    ///
    /// Recipes that come with drophammer are debian-12, debian-12-kubernetes, debian-12-firewall and tiny; FILE.toml is your
    /// own, and may begin with `base = "debian-12"` to bring only what it has besides. As an ordinary user this needs user
    /// namespaces (package uidmap). What is neither changed nor out of date comes from the cache. The same packages at the
    /// same --date give the same tar, byte for byte.
    Build {
        /// One that comes with drophammer, or a recipe file.
        recipe: String,
        /// The tar to write; by default RECIPE.tar here.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Debian mirror instead of the host's: a URL, or a directory with a copy of one.
        #[arg(long, value_name = "URL", env = "DROPHAMMER_MIRROR")]
        mirror: Option<String>,
        /// The date that files get, as YYYY-MM-DD or in seconds since 1970; by default that of the newest package list.
        #[arg(long, value_name = "DATE", env = "SOURCE_DATE_EPOCH", value_parser = build_date)]
        date: Option<u64>,
        /// Ask the archive for newer packages now.
        #[arg(long)]
        refresh: bool,
    },
    /// Make a key pair that signs images: FILE and FILE.pub.
    Keygen {
        /// Where the private key goes.
        file: PathBuf,
    },
    /// Compile a root file system to a signed image and publish it in a store.
    ///
    /// The image has two forms: a file system that machines write to their disks as it is, and the tar itself for layouts
    /// that need it. Both are cut into chunks, and of a new version only chunks that no earlier one has are stored.
    ///
    /// Of a disk, such as debian-12-generic-amd64.raw, the root is the partition with /etc/fstab; other partitions that it
    /// mounts are taken to where it has them, and the EFI system partition is left out: machines are given their own. The
    /// disk is only read. It must have been unmounted cleanly; other forms than raw are converted first (qemu-img convert).
    Pack {
        /// A root file system with kernel and boot loader: as a tar; as a container image, an OCI image layout (a directory,
        /// or a tar of it); or as a raw disk with a GPT, an MBR or neither, and the root in ext4, ext3 or ext2. Files may be
        /// compressed with zstd, gzip, xz or lz4.
        input: PathBuf,
        /// Which of the images of an OCI layout, if it has several for linux/amd64.
        #[arg(long)]
        tag: Option<String>,
        /// What it's called, such as debian-12.
        #[arg(long)]
        name: String,
        /// Which build of it; a version that was published never changes.
        #[arg(long)]
        version: String,
        /// Directory that boot servers serve.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Private key from `image keygen`.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Kernel arguments that the image needs, without root=.
        #[arg(long, default_value = "")]
        cmdline: String,
        /// How it wants to be started for the first time: `reboot` for what doesn't come up after kexec.
        #[arg(long, value_name = "HOW")]
        boot: Option<BootBy>,
        /// zstd level: 3 is quick, 19 makes what is fetched often a fifth smaller.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
        level: i32,
        /// The last day on which it may be installed.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = end_of_day)]
        expires: Option<u64>,
        /// Which forms to make.
        #[arg(long, value_enum, default_value = "both")]
        forms: FormsWanted,
        #[command(flatten)]
        minimum: MinimumWanted,
    },
    /// Publish somebody else's image in a store: fetched, checked by the hash beside it, compiled and signed.
    ///
    /// For metal-stack's images (img.tar.lz4 with its .md5), and for tars of root file systems and raw disks (plain, .zst,
    /// .gz, .xz, .lz4) whose SHA-256 is given or lies beside them (.sha256). What it was checked by is part of the image from
    /// then on. A fetch that broke off goes on where it was; an image that is there already isn't fetched again.
    Import {
        /// http:// or https:// address, or a file.
        from: String,
        /// What it's called; metal-stack's addresses say it.
        #[arg(long)]
        name: Option<String>,
        /// Which build of it; metal-stack's addresses with a date say it.
        #[arg(long)]
        version: Option<String>,
        /// Directory that boot servers serve.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Private key from `image keygen`.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// What it has to hash to, instead of what the file beside it says.
        #[arg(long, value_name = "HEX", conflicts_with = "unchecked")]
        sha256: Option<String>,
        /// Take it as it comes, checked by nothing.
        #[arg(long)]
        unchecked: bool,
        /// Kernel arguments that the image needs, without root=.
        #[arg(long, default_value = "")]
        cmdline: String,
        /// The last day on which it may be installed.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = end_of_day)]
        expires: Option<u64>,
        #[command(flatten)]
        minimum: MinimumWanted,
    },
    /// Show what a published image says of itself: forms, packs, what starts it, who signed it.
    Inspect {
        /// Directory of the image, STORE/NAME/VERSION.
        dir: PathBuf,
        /// Public key that may sign images (FILE.pub of `image keygen`). Can be given several times.
        #[arg(long = "trust", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
    },
    /// Check a published image completely: signature, every chunk, the files that boot it.
    Verify {
        /// Directory of the image, STORE/NAME/VERSION.
        dir: PathBuf,
        /// Public key that may sign images (FILE.pub of `image keygen`). Can be given several times.
        #[arg(long = "trust", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
    },
    /// Bring an image to where it's served from: another directory, or an S3-compatible bucket.
    ///
    /// It's checked first; only packs that aren't there yet are sent, and the manifest comes last, so that nobody sees half
    /// an image. A version that is there is never replaced by another; running it again takes up what was interrupted.
    Publish(publish::Publish),
    /// Fill a boot server's directory from a store elsewhere, for machines that reach nothing else.
    ///
    /// Nothing of an image is fetched before its signature is found right, and every pack is checked before it's there.
    /// What broke off goes on where it did, also when this is run again. One image that fails doesn't keep others away.
    Mirror(publish::Mirror),
    /// Sign an image with another key: the same manifest, to the byte, with a new signature.
    ///
    /// `image publish` then brings the signature to where the image is served from.
    Sign {
        /// Directory of the image, STORE/NAME/VERSION.
        dir: PathBuf,
        /// Private key from `image keygen` that signs it from here on.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Public key that has signed it until now. Can be given several times.
        #[arg(long = "trust", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
    },
    /// Take back an image that was published: servers don't install it any more, and say why.
    ///
    /// It's put on the store's signed list of revoked images, which `image publish` and `image mirror` bring to other stores.
    /// What was revoked once stays so; another build is another version.
    Revoke(publish::Revoke),
    /// Say what is different between two images: packages, what starts a machine, and how much has to be fetched.
    Diff {
        /// Directory of the older image, STORE/NAME/VERSION.
        from: PathBuf,
        /// Directory of the newer one.
        to: PathBuf,
        /// Public key that may sign images (FILE.pub of `image keygen`). Can be given several times.
        #[arg(long = "trust", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
    },
    /// Remove what a store needn't keep: packs that no image there refers to, and what killed publishers left.
    ///
    /// Nothing is removed if any manifest there can't be read, or while anybody publishes into it.
    Gc {
        /// Directory of images.
        store: PathBuf,
        /// Say what would be removed, and remove nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the images that a server can install; with --store, those of a directory, and why others can't be trusted.
    List {
        /// Directory of images, as `image pack` fills it, instead of a server's.
        #[arg(long, value_name = "DIR", requires = "keys", conflicts_with = "server")]
        store: Option<PathBuf>,
        /// Public key that may sign images (FILE.pub of `image keygen`). Can be given several times.
        #[arg(long = "trust", value_name = "FILE", requires = "store")]
        keys: Vec<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json;
    match args.command {
        Command::Build { recipe, output, mirror, date, refresh } => {
            let recipe = Recipe::load(&recipe)?;
            let output = output.unwrap_or_else(|| format!("{}.tar", recipe.name).into());
            let built = drophammer_images::build(&recipe, &output, &BuildOptions { mirror, date, refresh })?;
            if json {
                return output::json(&built);
            }
            let from = if built.cached { "from the cache" } else { "built" };
            output::line(&format!("{}: {} packages, {from}", built.tar.display(), built.packages.len()))?;
            output::line(&format!("pack it with: --cmdline '{}'", built.cmdline))
        }
        Command::Keygen { file } => {
            let public = drophammer_images::keygen(&file)?;
            if json {
                return output::json(&public);
            }
            output::line(&format!("{} signs; servers are given {}.pub ({public})", file.display(), file.display()))
        }
        Command::Pack { input, tag, name, version, store, key, cmdline, boot, level, expires, forms, minimum } => {
            let key = drophammer_images::load_key(&key)?;
            let (forms, minimum) = (forms.into(), minimum.into());
            let named = PackOptions::new(&name, &version, &cmdline);
            let options = PackOptions { boot, level, expires, forms, tag, minimum, ..named };
            let meter = output::Meter::new("packed");
            let packed = drophammer_images::pack(&input, &store, &options, &key, &|bytes| meter.add(bytes))?;
            meter.clear();
            published(&packed, json)
        }
        Command::Import { from, name, version, store, key, sha256, unchecked, cmdline, expires, minimum } => {
            let key = drophammer_images::load_key(&key)?;
            let hash = match sha256 {
                Some(sha256) => Hash::Sha256(sha256.to_ascii_lowercase()),
                None if unchecked => Hash::None,
                None => Hash::Beside,
            };
            let import = Import::new(&from, name.as_deref(), version.as_deref(), hash)?;
            let named = PackOptions::new(&import.name, &import.version, &cmdline);
            let options = PackOptions { expires, minimum: minimum.into(), ..named };
            let meter = output::Meter::new("fetched");
            let downloads = drophammer_images::cache_dir()?.join("imports");
            let packed =
                drophammer_images::import(&import, &store, &options, &key, &downloads, &|stage| match stage {
                    Stage::Fetching { bytes, .. } => meter.at(bytes, "fetched"),
                    Stage::Checking => meter.at(0, "checking what was fetched"),
                    Stage::Packing { bytes } => meter.at(bytes, "packed"),
                })?;
            meter.clear();
            published(&packed, json)
        }
        Command::Inspect { dir, keys } => {
            let keys = public_keys(&keys)?;
            let manifest = drophammer_images::inspect(&dir, &keys)?;
            let revoked = drophammer_images::revoked(&dir, &manifest, &keys)?;
            if json {
                return output::json(&show::Inspected { manifest: manifest.get(), revoked: revoked.as_ref() });
            }
            output::line(&describe(&manifest, revoked.as_ref()))
        }
        Command::Verify { dir, keys } => {
            let manifest = drophammer_images::verify(&dir, &public_keys(&keys)?)?;
            if json {
                return output::json(&ImageSummary::of(&manifest));
            }
            let chunks = manifest.chunks().count();
            output::line(&format!(
                "{}: {chunks} chunks, all as {} signed them",
                manifest.reference(),
                manifest.signed_by()
            ))
        }
        Command::Publish(args) => publish::publish(&args, json),
        Command::Mirror(args) => publish::mirror(&args, json),
        Command::Sign { dir, key, keys } => {
            let key = drophammer_images::load_key(&key)?;
            let manifest = drophammer_images::sign(&dir, &public_keys(&keys)?, &key)?;
            if json {
                return output::json(&ImageSummary::of(&manifest));
            }
            output::line(&format!("{} is signed by {} now", manifest.reference(), manifest.signed_by()))
        }
        Command::Revoke(args) => publish::revoke(&args, json),
        Command::Diff { from, to, keys } => {
            let diff = drophammer_images::diff(&from, &to, &public_keys(&keys)?)?;
            if json { output::json(&diff) } else { output::line(&show::difference(&diff)) }
        }
        Command::Gc { store, dry_run } => {
            let sweep = drophammer_images::gc(&store, std::time::SystemTime::now())?;
            if json {
                output::json(&sweep.garbage)?;
            } else {
                output::line(&show::garbage(&sweep.garbage, dry_run))?;
            }
            if dry_run { Ok(()) } else { sweep.remove() }
        }
        Command::List { store: Some(store), keys, .. } => {
            list_store(&drophammer_images::list(&store, &public_keys(&keys)?)?, json)
        }
        Command::List { store: None, server, .. } => {
            let server = server.connect()?;
            list(&server.images()?, json)?;
            for import in server.imports()?.iter().filter(|i| !json && i.state != ImportState::There) {
                output::line(&format!("{} isn't here yet: {} (from {})", import.reference, import.words, import.url))?;
            }
            Ok(())
        }
    }
}

fn published(packed: &Packed, json: bool) -> Result<()> {
    if json {
        return output::json(&ImageSummary::of(&packed.manifest));
    }
    let done = if packed.existed { "was there already, the same to the byte" } else { "published" };
    output::line(&format!("{} {done}: {}", packed.manifest.reference(), packed.dir.display()))?;
    if let Some(source) = &packed.manifest.source {
        output::line(&format!("from {}", source.words()))?;
    }
    let (new, all) = (words::bytes(packed.new_bytes), words::bytes(packed.manifest.download_bytes()));
    output::line(&format!("machines fetch {all}; the store grew by {new}"))
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct MinimumWanted {
    /// Memory that a machine must have for it, such as 4GiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    min_memory: Option<u64>,
    /// Size that the disk must have that it's installed on, such as 64GiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    min_disk: Option<u64>,
}

impl From<MinimumWanted> for Option<Minimum> {
    fn from(wanted: MinimumWanted) -> Self {
        let minimum = Minimum { memory_bytes: wanted.min_memory, disk_bytes: wanted.min_disk };
        (minimum != Minimum::default()).then_some(minimum)
    }
}

pub(crate) fn size(text: &str) -> Result<u64> {
    match text.parse() {
        Ok(Amount::Bytes(bytes)) => Ok(bytes),
        _ => bail!("give a size as 512MiB or 4GiB"),
    }
}

fn build_date(text: &str) -> Result<u64> {
    match text.parse() {
        Ok(seconds) => Ok(seconds),
        Err(_) => start_of(day(text)?),
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormsWanted {
    Both,
    /// Only the file system.
    Block,
    /// Only the tar.
    Tar,
}

impl From<FormsWanted> for Forms {
    fn from(wanted: FormsWanted) -> Self {
        match wanted {
            FormsWanted::Both => Self::Both,
            FormsWanted::Block => Self::Block,
            FormsWanted::Tar => Self::Tar,
        }
    }
}

/// The first second after a day, in UTC and since 1970.
fn end_of_day(text: &str) -> Result<u64> {
    start_of(day(text)?.next_day().context("that is later than anybody can count")?)
}

fn day(text: &str) -> Result<time::Date> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    time::Date::parse(text, format).context("give a day as 2030-12-31")
}

fn start_of(day: time::Date) -> Result<u64> {
    u64::try_from(day.midnight().assume_utc().unix_timestamp()).context("that was before 1970")
}

fn public_keys(files: &[PathBuf]) -> Result<Vec<PublicKey>> {
    files.iter().map(|file| drophammer_images::load_public(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_dates_as_people_write_them() {
        for (text, want) in [
            ("512MiB", Some(512 << 20)),
            ("4GiB", Some(4 << 30)),
            ("1TiB", Some(1 << 40)),
            ("4", None),
            ("4GB", None),
            ("GiB", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(size(text).ok(), want, "{text}");
        }
        for (text, want) in [
            ("0", Some(0)),
            ("1700000000", Some(1_700_000_000)),
            ("1970-01-02", Some(86_400)),
            ("1969-01-01", None),
            ("soon", None),
        ] {
            assert_eq!(build_date(text).ok(), want, "{text}");
        }
    }
}
