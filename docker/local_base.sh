#!/bin/sh
# Make a base image from Debian's packages alone, where no registry of images can be reached. Needs root, debootstrap
# and a Docker engine. The machine's certificates go along, so that pip inside works wherever pip outside does.
#
#   docker/local_base.sh [NAME]
set -eu
name=${1:-tenfold-base:bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$folder/root" >&2
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/ca-certificates.crt"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$folder/root/etc/pip.conf"
fi
tar --create --directory "$folder/root" --exclude ./var/cache/apt --exclude ./var/lib/apt/lists . |
    docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$name" >&2
echo "$name"
