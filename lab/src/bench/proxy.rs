//! How many machines are told in a second where to boot from, beside a server that gives out addresses.

use anyhow::Result;

use super::arena::Who;
use super::perfdhcp::Exchange;
use super::{Contest, dora};

pub(super) fn against_dnsmasq() -> Result<Contest> {
    dora::contest(Exchange::PxeOffer, Who::Dnsmasq, 5000.0)
}
