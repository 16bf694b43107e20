//! Where images go, and where they come from.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use drophammer_images::{Listener, Outcome, Place, S3Options};
use drophammer_protocol::api::ImageSummary;
use drophammer_protocol::words;
use serde_json::json;

use super::public_keys;
use crate::output;

// No sentence of its own for clap, which would show it in place of the command's.
#[derive(Debug, clap::Args)]
pub(super) struct S3 {
    /// URL of an S3-compatible service, such as https://s3.example.com; by default Amazon's.
    ///
    /// Besides these options the usual variables count: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
    /// AWS_REGION, AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE with AWS_PROFILE; on Amazon's hosts the host's own role does.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Region of the bucket.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// File of access keys, as the tools of AWS have it in ~/.aws/credentials.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

impl S3 {
    pub(super) fn place(&self, text: &str) -> Result<Place> {
        let options = S3Options {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            credentials: self.credentials.clone(),
        };
        Place::parse(text, &options)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Publish {
    /// Directory of the image, STORE/NAME/VERSION.
    dir: PathBuf,
    /// The store that gets it: a directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "STORE")]
    to: String,
    /// Public key that has to have signed it; without any, whoever it says. Can be given several times.
    #[arg(long = "trust", value_name = "FILE")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    s3: S3,
}

pub(super) fn publish(args: &Publish, json: bool) -> Result<()> {
    let to = args.s3.place(&args.to)?;
    let meter = output::Meter::new("sent");
    let published = drophammer_images::publish(&args.dir, &to, &public_keys(&args.keys)?, &|bytes| meter.add(bytes));
    meter.clear();
    let published = published?;
    let manifest = &published.manifest;
    if json {
        return output::json(&json!({
            "image": ImageSummary::of(manifest),
            "outcome": name(published.outcome),
            "sent_bytes": published.sent_bytes,
        }));
    }
    let (done, sent) = (said(published.outcome), words::bytes(published.sent_bytes));
    output::line(&format!("{} {done} in {to}, signed by {}; {sent} sent", manifest.reference(), manifest.signed_by()))
}

#[derive(Debug, clap::Args)]
pub(super) struct Mirror {
    /// The store that has them: a directory, s3://BUCKET/PREFIX, or the http(s) URL of a directory.
    #[arg(long, value_name = "STORE")]
    from: String,
    /// Directory that gets them.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// NAME/VERSION, or NAME for its newest; by default all. A web server can't say what it has: there it's NAME/VERSION.
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Public key that may sign images (FILE.pub of `image keygen`). Can be given several times.
    #[arg(long = "trust", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    s3: S3,
}

pub(super) fn mirror(args: &Mirror, json: bool) -> Result<()> {
    let from = args.s3.place(&args.from)?;
    let meter = output::Meter::new("fetched");
    let listener = Listener { progress: &|bytes| meter.add(bytes), interrupted: &|said| tracing::warn!("{said}") };
    let now = drophammer_control::unix_ms() / 1000;
    let mirrored = drophammer_images::mirror(&from, &args.to, &args.images, &public_keys(&args.keys)?, now, listener);
    meter.clear();
    let mirrored = mirrored?;
    if json {
        let one = |image: &drophammer_images::Mirrored| match &image.result {
            Ok(copied) => json!({
                "image": image.reference,
                "outcome": name(copied.outcome),
                "fetched_bytes": copied.fetched_bytes,
            }),
            Err(error) => json!({ "image": image.reference, "error": format!("{error:#}") }),
        };
        output::json(&mirrored.iter().map(one).collect::<Vec<_>>())?;
    }
    let mut failed = Vec::new();
    for image in &mirrored {
        match &image.result {
            Ok(copied) if !json => {
                let (done, fetched) = (said(copied.outcome), words::bytes(copied.fetched_bytes));
                output::line(&format!("{} {done} in {}; {fetched} fetched", image.reference, args.to.display()))?;
            }
            Ok(_) => {}
            Err(error) => failed.push(format!("{}: {error:#}", image.reference)),
        }
    }
    ensure!(failed.is_empty(), "images that weren't mirrored:\n  {}", failed.join("\n  "));
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// The image where it's published: STORE/NAME/VERSION, in a directory or with s3://BUCKET/PREFIX as the store.
    image: String,
    /// Private key that signs the list, one that servers trust.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A sentence for whoever wants to install it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Public key that signed the image or the list, if it was another one. Can be given several times.
    #[arg(long = "trust", value_name = "FILE")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    s3: S3,
}

pub(super) fn revoke(args: &Revoke, json: bool) -> Result<()> {
    let (store, reference) = drophammer_images::split_image(&args.image)?;
    let (place, key) = (args.s3.place(&store)?, drophammer_images::load_key(&args.key)?);
    let (keys, now) = (public_keys(&args.keys)?, drophammer_control::unix_ms() / 1000);
    let revoked = drophammer_images::revoke(&place, &reference, &keys, &key, &args.reason, now)?;
    if json {
        return output::json(&revoked);
    }
    output::line(&format!("{reference} is revoked in {place}: {}", revoked.reason))
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Published => "published",
        Outcome::SignedAnew => "signed_anew",
        Outcome::Existed => "existed",
    }
}

fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Published => "published",
        Outcome::SignedAnew => "has a new signature",
        Outcome::Existed => "was there already, the same to the byte,",
    }
}
