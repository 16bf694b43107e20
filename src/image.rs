//! `drophammer image`: what image builders do.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use drophammer_images::{BuildOptions, Forms, PackOptions, Recipe, Stored};
use drophammer_protocol::api::ImageSummary;
use drophammer_protocol::manifest::{Chunk, Manifest};
use drophammer_protocol::order::BootBy;
use drophammer_protocol::sign::{PublicKey, Verified};
use drophammer_protocol::words;

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
    /// Recipes that come with drophammer are debian-12 and tiny; FILE.toml is your own. As an ordinary user this needs
    /// user namespaces (package uidmap). What is neither changed nor out of date comes from the cache.
    Build {
        /// debian-12, tiny, or a recipe file.
        recipe: String,
        /// The tar to write; by default RECIPE.tar here.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Debian mirror instead of the host's.
        #[arg(long, value_name = "URL", env = "DROPHAMMER_MIRROR")]
        mirror: Option<String>,
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
    Pack {
        /// A root file system as a tar, plain or compressed with zstd, gzip, xz or lz4, with kernel and boot loader.
        tar: PathBuf,
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
    match args.command {
        Command::Build { recipe, output, mirror, refresh } => {
            let recipe = Recipe::load(&recipe)?;
            let output = output.unwrap_or_else(|| format!("{}.tar", recipe.name).into());
            let built = drophammer_images::build(&recipe, &output, &BuildOptions { mirror, refresh })?;
            if args.json {
                return output::json(&built);
            }
            let from = if built.cached { "from the cache" } else { "built" };
            output::line(&format!("{}: {} packages, {from}", built.tar.display(), built.packages.len()))?;
            output::line(&format!("pack it with: --cmdline '{}'", built.cmdline))
        }
        Command::Keygen { file } => {
            let public = drophammer_images::keygen(&file)?;
            if args.json {
                return output::json(&public);
            }
            output::line(&format!("{} signs; servers are given {}.pub ({public})", file.display(), file.display()))
        }
        Command::Pack { tar, name, version, store, key, cmdline, boot, level, expires, forms } => {
            let key = drophammer_images::load_key(&key)?;
            let forms = forms.into();
            let options = PackOptions { boot, level, expires, forms, ..PackOptions::new(&name, &version, &cmdline) };
            let meter = output::Meter::new("packed");
            let packed = drophammer_images::pack(&tar, &store, &options, &key, &|bytes| meter.add(bytes))?;
            meter.clear();
            if args.json {
                return output::json(&summary(&packed.manifest));
            }
            let done = if packed.existed { "was there already, the same to the byte" } else { "published" };
            output::line(&format!("{} {done}: {}", packed.manifest.reference(), packed.dir.display()))?;
            let (new, all) = (words::bytes(packed.new_bytes), words::bytes(packed.manifest.download_bytes()));
            output::line(&format!("machines fetch {all}; the store grew by {new}"))
        }
        Command::Inspect { dir, keys } => {
            let manifest = drophammer_images::inspect(&dir, &public_keys(&keys)?)?;
            if args.json {
                return output::json(manifest.get());
            }
            output::line(&describe(&manifest))
        }
        Command::Verify { dir, keys } => {
            let manifest = drophammer_images::verify(&dir, &public_keys(&keys)?)?;
            if args.json {
                return output::json(&summary(&manifest));
            }
            let chunks = manifest.chunks().count();
            output::line(&format!(
                "{}: {chunks} chunks, all as {} signed them",
                manifest.reference(),
                manifest.signed_by()
            ))
        }
        Command::List { store: Some(store), keys, .. } => {
            list_store(&drophammer_images::list(&store, &public_keys(&keys)?)?, args.json)
        }
        Command::List { store: None, server, .. } => list(&server.connect()?.images()?, args.json),
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
    let format = time::macros::format_description!("[year]-[month]-[day]");
    let day = time::Date::parse(text, format).context("give a day as 2030-12-31")?;
    let next = day.next_day().context("that is later than anybody can count")?.midnight().assume_utc();
    u64::try_from(next.unix_timestamp()).context("that was before 1970")
}

fn describe(manifest: &Verified<Manifest>) -> String {
    let mut lines = vec![
        format!("{}: {}", manifest.reference(), manifest.description),
        format!("  for        {}, {} installed", manifest.arch, words::bytes(manifest.installed_bytes)),
        format!("  signed by  {}", manifest.signed_by()),
        format!("  made       {}", output::date(manifest.created * 1000)),
    ];
    if let Some(expires) = manifest.expires {
        lines.push(format!("  until      {}", output::date(expires.saturating_sub(1) * 1000)));
    }
    let fetched = |chunks: &mut dyn Iterator<Item = &Chunk>| {
        let (number, bytes) = chunks.fold((0, 0), |(n, sum), chunk| (n + 1, sum + u64::from(chunk.length)));
        format!("{} in {}", words::bytes(bytes), words::count(number, "chunk"))
    };
    if let Some(form) = &manifest.block {
        let size = words::bytes(form.bytes);
        lines.push(format!("  as blocks  an ext4 of {size}, fetched as {}", fetched(&mut form.chunks())));
    }
    if let Some(form) = &manifest.tar {
        let size = words::bytes(form.bytes);
        lines.push(format!("  as a tar   of {size}, fetched as {}", fetched(&mut form.chunks.iter())));
    }
    for pack in &manifest.packs {
        lines.push(format!("  pack       {} ({})", pack.sha256, words::bytes(pack.bytes)));
    }
    let boot = &manifest.boot;
    lines.push(format!("  kernel     {}", boot.kernel.path));
    if let Some(initrd) = &boot.initrd {
        lines.push(format!("  initrd     {}", initrd.path));
    }
    lines.push(format!("  arguments  {}", boot.cmdline));
    if let Some(by) = boot.by {
        lines.push(format!("  started    by {}", by.name()));
    }
    let starts: Vec<&str> =
        [boot.bios.as_ref().map(|_| "BIOS"), boot.uefi.as_ref().map(|_| "UEFI")].into_iter().flatten().collect();
    lines.push(format!(
        "  starts on  {}",
        if starts.is_empty() { "nothing but kexec".to_owned() } else { starts.join(" and ") }
    ));
    if let Some(sbom) = &manifest.sbom {
        lines.push(format!("  packages   {} (SPDX)", sbom.file));
    }
    lines.join("\n")
}

fn public_keys(files: &[PathBuf]) -> Result<Vec<PublicKey>> {
    files.iter().map(|file| drophammer_images::load_public(file)).collect()
}

fn list_store(stored: &[Stored], json: bool) -> Result<()> {
    let mut trusted = Vec::new();
    let mut refused = Vec::new();
    for image in stored {
        match &image.manifest {
            Ok(manifest) => trusted.push(summary(manifest)),
            Err(problem) => refused.push(format!("{}: {problem}", image.reference)),
        }
    }
    list(&trusted, json)?;
    ensure!(refused.is_empty(), "images that can't be trusted:\n  {}", refused.join("\n  "));
    if stored.is_empty() {
        bail!("the store has no images; `drophammer image pack` publishes one");
    }
    Ok(())
}

fn list(images: &[ImageSummary], json: bool) -> Result<()> {
    if json {
        return output::json(images);
    }
    let row = |i: &ImageSummary| {
        let (download, installed) = (words::bytes(i.download_bytes), words::bytes(i.installed_bytes));
        [format!("{}/{}", i.name, i.version), download, installed, i.description.clone()]
    };
    output::table(["IMAGE", "DOWNLOAD", "INSTALLED", "DESCRIPTION"], &images.iter().map(row).collect::<Vec<_>>())
}

fn summary(manifest: &Verified<Manifest>) -> ImageSummary {
    ImageSummary {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        description: manifest.description.clone(),
        created: manifest.created,
        expires: manifest.expires,
        download_bytes: manifest.download_bytes(),
        installed_bytes: manifest.installed_bytes,
        signed_by: manifest.signed_by(),
    }
}
