"""What every part uses: errors, files, images, logging, devices, processes."""
