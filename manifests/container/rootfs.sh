#!/bin/sh
# Assembles the file system of the image: rootfs.sh BINARY FOLDER. Needs a Debian with ca-certificates and tzdata.
set -eu
[ $# -eq 2 ] || { echo "usage: rootfs.sh BINARY FOLDER" >&2; exit 2; }
binary=$1 root=$2
[ -x "$binary" ] || { echo "rootfs.sh: $binary is no program; build it first" >&2; exit 1; }
[ ! -e "$root" ] || { echo "rootfs.sh: $root is there already; name a folder that is not" >&2; exit 1; }

install -D -m 0755 "$binary" "$root/usr/local/bin/tenantry"
# What it links to, the loader included.
ldd "$binary" | grep -o '/[^ )]*' | sort -u | while read -r library; do
  install -D -m 0755 "$(readlink -f "$library")" "$root$library"
done
for file in /etc/ssl/certs/ca-certificates.crt /usr/share/zoneinfo/UTC; do
  [ -r "$file" ] || { echo "rootfs.sh: $file is missing; install ca-certificates and tzdata" >&2; exit 1; }
done
install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$root/usr/share"
cp -a /usr/share/zoneinfo "$root/usr/share/zoneinfo"
printf 'tenantry:x:65532:65532:tenantry:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'tenantry:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
find "$root" -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
