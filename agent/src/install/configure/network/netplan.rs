//! netplan's YAML, which is also version 2 of cloud-init's network configuration, but for default routes: cloud-init knows them
//! by names that netplan has given up.

use drophammer_protocol::id::Mac;
use drophammer_protocol::system::network::{Bond, Ip, Port, Under};
use serde_json::{Map, Value, json};

use super::super::super::yaml;
use super::{HEAD, Wanted};

/// `renderer` as netplan calls it; cloud-init finds one itself.
pub(super) fn text(wanted: &Wanted<'_>, renderer: Option<&str>) -> String {
    let network = &wanted.network;
    let mut ethernets = Map::new();
    for Port { mac, mtu, ip } in &network.all_ports() {
        ethernets.insert(port_id(*mac), with(link(*mtu, ip, wanted, renderer), "match", json!({ "macaddress": mac })));
    }
    for member in network.bonds.iter().flat_map(|bond| &bond.members) {
        ethernets.insert(port_id(*member), json!({ "match": { "macaddress": member }, "optional": true }));
    }
    let mut bonds = Map::new();
    for bond in &network.bonds {
        bonds.insert(bond.name.clone(), bonded(bond, wanted, renderer));
    }
    let mut vlans = Map::new();
    for vlan in &network.vlans {
        let under = match &vlan.on {
            Under::Port(mac) => port_id(*mac),
            Under::Bond(name) => name.clone(),
        };
        let value = with(link(vlan.mtu, &vlan.ip, wanted, renderer), "id", json!(vlan.id));
        vlans.insert(vlan.name(), with(value, "link", json!(under)));
    }
    let mut all = Map::new();
    all.insert("version".into(), json!(2));
    all.extend(renderer.map(|name| ("renderer".into(), json!(name))));
    for (kind, of_kind) in [("ethernets", ethernets), ("bonds", bonds), ("vlans", vlans)] {
        if !of_kind.is_empty() {
            all.insert(kind.into(), Value::Object(of_kind));
        }
    }
    HEAD.to_owned() + &yaml::text(&json!({ "network": all }))
}

/// A name for a definition, not for a port. Of those that fit the same port the first by name counts.
fn port_id(mac: Mac) -> String {
    format!("0-drophammer-{}", mac.to_string().replace(':', ""))
}

fn with(mut value: Value, key: &str, what: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.insert(key.into(), what);
    }
    value
}

fn bonded(bond: &Bond, wanted: &Wanted<'_>, renderer: Option<&str>) -> Value {
    let members: Vec<String> = bond.members.iter().map(|mac| port_id(*mac)).collect();
    let mut parameters = json!({ "mode": bond.mode.name(), "mii-monitor-interval": 100 });
    for (key, value) in [
        ("lacp-rate", bond.lacp_rate.map(|rate| json!(rate.name()))),
        ("transmit-hash-policy", bond.hash_policy.map(|policy| json!(policy.name()))),
        ("min-links", bond.min_links.map(|links| json!(links))),
        ("primary", bond.primary.map(|mac| json!(port_id(mac)))),
    ] {
        if let Some(value) = value {
            parameters = with(parameters, key, value);
        }
    }
    let value = with(link(bond.mtu, &bond.ip, wanted, renderer), "interfaces", json!(members));
    let value = with(value, "parameters", parameters);
    match bond.members.first() {
        Some(first) => with(value, "macaddress", json!(first)),
        None => value,
    }
}

fn link(mtu: Option<u32>, ip: &Ip, wanted: &Wanted<'_>, renderer: Option<&str>) -> Value {
    let mut map = Map::new();
    let mut say = |key: &str, value: Value| drop(map.insert(key.into(), value));
    say("dhcp4", json!(ip.dhcp4));
    say("dhcp6", json!(ip.dhcp6));
    if ip.is_empty() {
        // What only carries others isn't waited for.
        say("optional", json!(true));
        say("link-local", json!([]));
    }
    if ip.dhcp4 {
        say("dhcp-identifier", json!("mac"));
    }
    if ip.is_empty() || !ip.heeds_advertisements() {
        say("accept-ra", json!(false));
    }
    if let Some(mtu) = mtu {
        say("mtu", json!(mtu));
    }
    if !ip.addresses.is_empty() {
        say("addresses", json!(ip.addresses));
    }
    let mut routes = ip.all_routes();
    if renderer.is_none() {
        routes.clone_from(&ip.routes);
        for gateway in &ip.gateways {
            say(if gateway.is_ipv6() { "gateway6" } else { "gateway4" }, json!(gateway));
        }
    }
    let routes: Vec<Value> = routes
        .into_iter()
        .map(|route| {
            let default = route.to.prefix_len() == 0 && renderer.is_some();
            let to = if default { json!("default") } else { json!(route.to) };
            let value = json!({ "to": to, "via": route.via });
            let value = route.metric.map_or(value.clone(), |metric| with(value, "metric", json!(metric)));
            if route.on_link { with(value, "on-link", json!(true)) } else { value }
        })
        .collect();
    if !routes.is_empty() {
        say("routes", json!(routes));
    }
    if !(ip.is_empty() || wanted.dns.is_empty() && wanted.search.is_empty()) {
        let mut servers = Map::new();
        if !wanted.dns.is_empty() {
            servers.insert("addresses".into(), json!(wanted.dns));
        }
        if !wanted.search.is_empty() {
            servers.insert("search".into(), json!(wanted.search));
        }
        say("nameservers", Value::Object(servers));
    }
    let mut instead = Map::new();
    if !wanted.dns.is_empty() {
        instead.insert("use-dns".into(), json!(false));
    }
    if wanted.own_ntp {
        instead.insert("use-ntp".into(), json!(false));
    }
    for (key, on) in [("dhcp4-overrides", ip.dhcp4), ("dhcp6-overrides", ip.dhcp6)] {
        if on && !instead.is_empty() {
            say(key, Value::Object(instead.clone()));
        }
    }
    Value::Object(map)
}
